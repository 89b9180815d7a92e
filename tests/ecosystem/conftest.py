"""Queues with workers, for tools that use them in place of their own pools."""

from __future__ import annotations

from tests.client.conftest import run_script
from tests.real_workers import gate, new_queue, one_worker, queue, shared_queue

__all__ = ["gate", "new_queue", "one_worker", "queue", "run_script", "shared_queue"]
