"""Random numbers of an item that are the same in every run, and generators that are copied."""

from __future__ import annotations

import functools
import hashlib
import importlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

#: NumPy's; a `Generator` has one and is pickled with it.
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")


def reducers(met: list[Any]) -> dict[type, Callable[[Any], Any]]:
    """Return how generators are pickled, by type; those that are copied are added to `met`."""
    # Not a method of a pickler: the cycle would keep what was pickled alive.
    reduce = functools.partial(_reduce, met)
    kinds = [random.Random]
    if numpy := sys.modules.get("numpy.random"):
        kinds += [numpy.Generator, numpy.RandomState]
        kinds += [getattr(numpy, name) for name in _BIT_GENERATORS if hasattr(numpy, name)]
    if kind := getattr(sys.modules.get("torch"), "Generator", None):
        kinds.append(kind)
    return dict.fromkeys(kinds, reduce)


def _reduce(met: list[Any], generator: Any) -> Any:
    for module, function in (("random", "random"), ("numpy.random", "rand")):
        if generator is getattr(getattr(sys.modules.get(module), function, None), "__self__", None):
            return shared_generator, (module, function)
    parts = [getattr(met[-1], name, None) for name in ("bit_generator", "_bit_generator") if met]
    if not any(generator is part for part in parts):
        met.append(generator)
    return generator.__reduce_ex__(5)


def shared_generator(module: str, function: str) -> Any:
    """Return this process's generator behind a module's function, such as ``random.random``.

    With a copy of it, each call would draw the numbers that the kernel draws next.
    """
    return getattr(importlib.import_module(module), function).__self__


def is_spawned(generator: Any) -> bool:
    """Tell whether a generator of NumPy was spawned from another one, probably for one call."""
    sequence = getattr(getattr(generator, "bit_generator", generator), "seed_seq", None)
    return bool(getattr(sequence, "spawn_key", ()))


def type_name(generator: Any) -> str:
    """Return the public name of a generator's type."""
    kind = type(generator)
    return f"{kind.__module__.partition('._')[0].removesuffix('.mtrand')}.{kind.__qualname__}"


if TYPE_CHECKING:
    import numpy as np


#: The `seed` of `TaskQueue.map`.
Seed = int | Sequence[int]


class _Stream:
    """The random numbers of one item."""

    def __init__(self, seed: Seed, index: int) -> None:
        self.seed = seed
        self.index = index
        self.generator: np.random.Generator | None = None


#: Of the running item, if its map has a seed.
_stream: _Stream | None = None


#: The same of an item that runs as a coroutine, next to others.
_coroutine_stream: ContextVar[_Stream | None] = ContextVar("_coroutine_stream", default=None)


def is_seeded() -> bool:
    """Tell whether an item of a map with a seed is running."""
    return _stream is not None


def generator() -> np.random.Generator:
    """Return the generator of the running item; without a seed, a new one with a random state.

    Raises
    ------
    ModuleNotFoundError
        NumPy is not installed.
    """
    try:
        import numpy as np
    except ImportError as error:
        raise ModuleNotFoundError(
            "nbstreamq.rng() returns a generator of NumPy, which is not installed here. Install"
            " NumPy, or use the module `random`, which a map with a seed also seeds for each item.",
            name="numpy",
        ) from error
    stream = _coroutine_stream.get() or _stream
    if stream is None:
        return np.random.default_rng()
    if stream.generator is None:
        # The same as SeedSequence(seed).spawn(n)[index], without the others.
        mine = np.random.SeedSequence(stream.seed, spawn_key=(stream.index,))
        stream.generator = np.random.default_rng(mine)
    return stream.generator


def begin(seed: Seed, index: int) -> None:
    """Seed the random numbers of item `index` of a map, inside `own_state`."""
    global _stream  # noqa: PLW0603 - a process runs one item at a time
    _stream = _Stream(seed, index)
    words = [seed] if isinstance(seed, int) else list(seed)
    digest = hashlib.blake2b(repr((words, index)).encode(), digest_size=32).digest()
    random.seed(digest)
    if (legacy := _legacy_numpy()) is not None:
        legacy.seed([int.from_bytes(digest[k : k + 4], "little") for k in range(0, 32, 4)])


def begin_coroutine(seed: Seed, index: int) -> None:
    """Give item `index` of a map its own generator, in the context of its coroutine.

    Unlike `begin`, this does not seed the modules, whose state the coroutines of a process share.
    """
    _coroutine_stream.set(_Stream(seed, index))


@contextmanager
def own_state() -> Iterator[None]:
    """A context for items of a map with a seed, or for tasks that run while one waits.

    The random states are restored at its end.
    """
    global _stream  # noqa: PLW0603 - as above
    stream, _stream = _stream, None
    state, legacy = random.getstate(), _legacy_numpy()
    legacy_state = legacy and legacy.get_state()
    random.seed()
    if legacy is not None:
        legacy.seed()
    try:
        yield
    finally:
        _stream = stream
        random.setstate(state)
        if legacy is not None:
            legacy.set_state(legacy_state)


def _legacy_numpy() -> Any:
    """Return ``numpy.random``, whose functions share a state; None if NumPy is not installed."""
    try:
        import numpy.random
    except ImportError:
        return None
    return numpy.random
