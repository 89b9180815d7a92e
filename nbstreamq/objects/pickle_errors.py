"""Explains why a value can't be pickled: which part of it, and where that is."""

from __future__ import annotations

import io
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from functools import partial
from multiprocessing.process import BaseProcess
from threading import Thread
from types import (
    AsyncGeneratorType,
    CoroutineType,
    FrameType,
    FunctionType,
    MethodType,
    ModuleType,
    TracebackType,
)
from typing import Any, NamedTuple

from ..errors import NotPicklable
from ..sizes import in_units
from .shell_lines import captures_of

#: Most objects that the search for the culprit visits. More takes longer and is seldom needed.
_MOST_VISITED = 5000
_MOST_CAPTURES = 8
#: Bytes below which a size is not worth mentioning.
_WORTH_TELLING = 1000
_LOCKS = frozenset(
    {
        *("_thread.lock", "_thread.RLock"),
        *(f"threading.{kind}" for kind in ("Condition", "Event", "Semaphore", "Barrier")),
        *(f"multiprocessing.synchronize.{kind}" for kind in ("Lock", "RLock", "Semaphore")),
    }
)
_ADVICE: tuple[tuple[tuple[type, ...], str], ...] = (
    (
        (CoroutineType, AsyncGeneratorType),
        "Run it with `await` inside an `async def` function, and return the result.",
    ),
    ((io.IOBase,), "Open it inside the function, or pass what it holds."),
    ((re.Match,), "Pass what you need of it, such as match.group() or match.groupdict()."),
    ((Thread, Executor, BaseProcess), "Start it inside the function."),
    ((TracebackType, FrameType), "Pass its text, which the module traceback makes."),
)
_LEAVES = frozenset({int, float, complex, str, bytes, bytearray, bool, type(None), type(...)})


class _Step(NamedTuple):
    """One step from a thing to a part of it: by name if captured, else as an expression."""

    text: str
    captured: bool


_Path = tuple[_Step, ...]


def explain(value: object, error: BaseException, what: str, first: int = 0) -> str:
    """Return a few sentences about which part of `value` can't be pickled.

    Parameters
    ----------
    value
        The value that was pickled.
    error
        The exception that this raised.
    what
        What `value` is: ``search()``, ``an argument of fib()``.
    first
        The number of the first element, if `value` is a list.
    """
    try:
        culprit = _find_culprit(value)
        path = _find_path(value, culprit[0]) if culprit else None
        if not culprit or path is None:
            return f"{what} {_fate(what)}: {_text(error)}"
        if first and path:
            number = int(path[0].text.strip("[]")) + first
            path = (_Step(f"[{number}]", captured=False), *path[1:])
        thing, error = culprit[0], culprit[1]
        subject, path = _subject(value, what, path)
        why = f"{_where(path, thing)}, which can't be pickled: {_text(error)}"
        sentences = [f"{subject} {_fate(what)}: {why}."]
        sentences.append(_captures(value, thing))
        if not isinstance(error, NotPicklable):  # its text says what to do
            is_result = what.startswith("the result")
            sentences.append(_advice_for_result(thing) if is_result else _advice(thing))
        return " ".join(s for s in sentences if s)
    except Exception:  # noqa: BLE001  # any object's methods may fail; the first error counts
        return f"{what} {_fate(what)}: {_text(error)}"


def _fate(what: str) -> str:
    return "can't be sent back" if what.startswith("the result") else "can't be sent to a worker"


def _text(error: BaseException) -> str:
    try:
        return str(error).rstrip(".") or type(error).__name__
    except Exception:  # noqa: BLE001  # its __str__ may fail
        return type(error).__name__


def _find_culprit(value: object) -> tuple[Any, BaseException] | None:
    """Pickle again; return the last object whose pickling began, and the error."""
    from .pickler import Pickler, Sink

    begun: list[Any] = [value]

    class Watch(Pickler):
        def reducer_override(self, obj: Any) -> Any:
            begun[0] = obj
            return super().reducer_override(obj)

    try:
        Watch(Sink(), maps=True).dump(value)
    except Exception as error:  # noqa: BLE001  # any error shows the culprit
        return begun[0], error
    return None


def _find_path(root: object, culprit: object) -> _Path | None:
    """Return the shortest path from `root` to `culprit`."""
    todo: deque[tuple[Any, _Path]] = deque([(root, ())])
    seen: dict[int, Any] = {id(root): root}
    while todo and len(seen) < _MOST_VISITED:
        thing, path = todo.popleft()
        if thing is culprit:
            return path
        for step, part in _parts(thing):
            if type(part) not in _LEAVES and id(part) not in seen:
                seen[id(part)] = part
                todo.append((part, (*path, step)))
            if len(seen) >= _MOST_VISITED:
                break
    return next((path for thing, path in todo if thing is culprit), None)


def _parts(thing: Any) -> Iterator[tuple[_Step, Any]]:
    """Yield the parts of `thing`."""
    kind = type(thing)
    if isinstance(thing, FunctionType | partial):
        yield from ((_Step(name, captured=True), part) for name, part in _captures_of(thing))
    elif isinstance(thing, dict):
        yield from ((_Step(f"[{_short(k)}]", captured=False), v) for k, v in thing.items())
        yield from ((_Step(" (a key)", captured=False), k) for k in thing)
    elif isinstance(thing, list | tuple):
        yield from ((_Step(f"[{i}]", captured=False), v) for i, v in enumerate(thing))
    elif isinstance(thing, set | frozenset):
        yield from ((_Step(" (an element)", captured=False), v) for v in thing)
    elif kind is MethodType:
        yield _Step("__self__", captured=True), thing.__self__
        yield _Step(thing.__func__.__name__, captured=True), thing.__func__
    elif kind is not ModuleType or thing.__name__ not in sys.builtin_module_names:
        yield from ((_Step(f".{n}", captured=False), v) for n, v in _attributes(thing))
        if not isinstance(thing, type | ModuleType):
            yield _Step(".__class__", captured=False), kind


def _captures_of(fn: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each thing that a function or partial captures."""
    if isinstance(fn, partial):
        yield from ((f"args[{i}]", v) for i, v in enumerate(fn.args))
        yield from fn.keywords.items()
        yield getattr(fn.func, "__name__", "func"), fn.func
    elif isinstance(fn, FunctionType):
        yield from ((name, value) for _, name, value in captures_of(fn))


def _attributes(thing: Any) -> Iterable[tuple[str, Any]]:
    found = dict(getattr(thing, "__dict__", {}))
    for cls in type(thing).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(thing, name):
                found.setdefault(name, getattr(thing, name))
    return found.items()


def _subject(value: Any, what: str, path: _Path) -> tuple[str, _Path]:
    """Return what the message is about: one argument, if `value` has the arguments of a call."""
    head, of, tail = what.partition(" of ")
    if not of or head.startswith("the ") or not path or path[0].captured:
        return what, path
    is_call = isinstance(value, tuple) and [type(part) for part in value] == [tuple, dict]
    steps = [step.text for step in path]
    if is_call:
        steps[0] = {"[0]": "args", "[1]": "kwargs"}.get(steps[0], steps[0])
    n = next((i for i, step in enumerate(path) if step.captured), len(path))
    noun = head.removeprefix("an ").removeprefix("a ")
    return f"{noun} {''.join(steps[:n])} of {tail}", path[n:]


def _where(path: _Path, thing: Any) -> str:
    """Return the path to `thing` as a clause: ``it captures `f`, which captures `conn` (…)``."""
    if not path:
        return f"it is a {_type_name(thing)}"
    captured: list[str] = []
    for step in path:
        if step.captured or not captured:
            captured.append(step.text.lstrip(".") if not step.captured else step.text)
        else:
            captured[-1] += step.text
    verb = "captures" if path[0].captured else "holds"
    names = ", which captures ".join(f"`{name}`" for name in captured)
    return f"it {verb} {names} ({_type_name(thing)})"


def _captures(value: Any, culprit: Any) -> str:
    """Return a sentence with the captured values of a function, the largest first."""
    sized = [
        (_size_of(part), name, part)
        for name, part in _captures_of(value)
        if not isinstance(part, ModuleType | FunctionType | type)
    ]
    sized.sort(key=lambda entry: -entry[0])
    worth = [entry for entry in sized if entry[0] >= _WORTH_TELLING or entry[2] is culprit]
    if not worth:
        return ""
    texts = [
        f"`{name}`" if part is culprit or size < _WORTH_TELLING else f"`{name}` {in_units(size)}"
        for size, name, part in worth[:_MOST_CAPTURES]
    ]
    if len(worth) > _MOST_CAPTURES:
        texts.append(f"{len(worth) - _MOST_CAPTURES} more")
    return f"Captured: {', '.join(texts)}."


def _size_of(thing: Any) -> int:
    """Return the size of `thing` in bytes, as far as it is known without looking into it."""
    try:
        if hasattr(thing, "memory_usage") and not isinstance(thing, type):
            usage = thing.memory_usage(deep=False)
            return int(usage.sum() if hasattr(usage, "sum") else usage)
        size = getattr(thing, "nbytes", None)
        return int(size) if size is not None else sys.getsizeof(thing)
    except Exception:  # noqa: BLE001  # any object's methods may fail
        return 0


def _advice(thing: Any) -> str:
    """Return a sentence about what to do instead of sending `thing` to a worker."""
    if _type_name(thing) in _LOCKS:
        return (
            "A lock works within one process only, and each call runs in another process. Make it"
            " inside the function, or leave it out."
        )
    for kinds, advice in _ADVICE:
        if isinstance(thing, kinds):
            return advice
    if hasattr(thing, "__next__"):
        return "Make a list of it first."
    verb = "Open" if hasattr(thing, "close") else "Make"
    return f"{verb} it inside the function, or pass what is needed to make it."


def _advice_for_result(thing: Any) -> str:
    """Return a sentence about what to do instead of returning `thing`."""
    advice = _advice(thing)
    if advice.startswith(("Run", "Make a list", "Pass")):
        return advice.replace("Pass", "Return")
    return "Return what you need of it instead."


def _type_name(thing: Any) -> str:
    cls = type(thing)
    plain = cls.__module__ in {"builtins", "__main__"}
    return cls.__qualname__ if plain else f"{cls.__module__}.{cls.__qualname__}"


def _short(key: Any) -> str:
    text = repr(key)
    return text if len(text) <= 40 else text[:37] + "..."
