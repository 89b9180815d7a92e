"""Who asks: the queue, its futures and jobs."""
