"""One queue with two workers for the whole tutorial; every test is a page of it."""

from __future__ import annotations

import pytest

from nbstreamq import TaskQueue
from tests.real_workers import shared_queue

__all__ = ["q", "shared_queue"]


@pytest.fixture(scope="module")
def q(shared_queue: TaskQueue) -> TaskQueue:
    """A queue as a notebook has it."""
    return shared_queue
