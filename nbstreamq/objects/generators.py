"""Random number generators that are to travel: those that a process shares stay where they are."""

from __future__ import annotations

import functools
import importlib
import random
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["is_spawned", "reducers", "shared_generator", "type_name"]


#: Of NumPy; a `Generator` has one, and is sent with it.
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")


def reducers(met: list[Any]) -> dict[type, Callable[[Any], Any]]:
    """Return how generators are sent, by their types; those that are copied are added to `met`."""
    # Not a method of a pickler: it would be a cycle, and keep what was pickled.
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
    """Return the generator behind a module's function, such as ``random.random``, of this process.

    In a copy of it, each call would draw what the kernel draws next.
    """
    return getattr(importlib.import_module(module), function).__self__


def is_spawned(generator: Any) -> bool:
    """Tell whether a generator of NumPy was spawned from another one: for one call, most likely."""
    sequence = getattr(getattr(generator, "bit_generator", generator), "seed_seq", None)
    return bool(getattr(sequence, "spawn_key", ()))


def type_name(generator: Any) -> str:
    """Return the public name of a generator's type."""
    kind = type(generator)
    return f"{kind.__module__.partition('._')[0].removesuffix('.mtrand')}.{kind.__qualname__}"
