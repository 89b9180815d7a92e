"""A `TaskQueue` with the constructor of `ProcessPoolExecutor`, for CPython's own tests."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any, ClassVar

from nbstreamq import TaskQueue

_numbers = itertools.count()


class QueueExecutor(TaskQueue):
    """A queue of its own, with as many local workers as the pool would have processes."""

    opened: ClassVar[list[QueueExecutor]] = []

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            # A queue without workers is useful: others may serve it. A pool's tests say otherwise.
            raise ValueError("max_workers must be greater than 0")
        if mp_context is not None:
            os.environ["NBSTREAMQ_START_METHOD"] = mp_context.get_start_method()
        name = f"conformance-{os.getpid()}-{next(_numbers)}"
        workers = "auto" if max_workers is None else max_workers
        super().__init__(name, workers=workers, initializer=initializer, initargs=initargs)
        self.opened.append(self)
