"""One queue with two workers for the whole tutorial; every test is a page of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nbstreamq import TaskQueue


@pytest.fixture(scope="module")
def q(
    request: pytest.FixtureRequest, server_url: str, wait_until: Callable[..., Any]
) -> Iterator[TaskQueue]:
    """A queue as a notebook has it."""
    with TaskQueue(f"{request.module.__name__}-{os.getpid()}", server_url, workers=2) as q:
        q.run(2)
        wait_until(lambda: len(q.workers()) == 2, describe="two workers")
        yield q
