"""The client: the queue, its futures and jobs."""
