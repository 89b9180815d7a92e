"""Queues with real workers."""

from tests.real_workers import gate, new_queue, one_worker, queue, shared_queue, shared_worker

__all__ = ["gate", "new_queue", "one_worker", "queue", "shared_queue", "shared_worker"]
