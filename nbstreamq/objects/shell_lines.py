"""What a function captures, and what IPython puts into it: its names, lines with ``!`` or ``%``."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from types import CodeType, FunctionType, MethodType
from typing import Any

from ..errors import NotPicklable
from .bytecode import names_of

#: Modules and names of what IPython puts into a notebook, or of its type.
_OF_SHELL = frozenset(
    {
        ("IPython.core.autocall", "ExitAutocall"),
        ("IPython.core.display_functions", "display"),
        ("IPython.core.interactiveshell", "InteractiveShell.get_ipython"),
    }
)
#: The names that they have in a notebook; under other names they are pickled like anything else.
_NAMES = frozenset({"display", "exit", "get_ipython", "quit"})
#: What a line with ``!`` or ``%`` calls -> how it begins in the notebook.
_CALLS = {"system": "!", "getoutput": "!", "run_line_magic": "%", "run_cell_magic": "%%"}


class ShellLine(NotPicklable):
    """A function has a line that only IPython can run."""


def captured_globals(fn: FunctionType) -> dict[str, Any]:
    """Return the globals that a function uses, without those of IPython.

    A worker has its own `exit`, `quit` and `display`, and no `get_ipython`.
    """
    known = fn.__globals__
    return {
        name: known[name]
        for name in names_of(fn.__code__).globals
        if name in known and not (name in _NAMES and _is_of_shell(known[name]))
    }


def captures_of(fn: FunctionType) -> Iterator[tuple[str, str, Any]]:
    """Yield what a function captures: a form for its name in messages, its name, and its value."""
    code, defaults = fn.__code__, fn.__defaults__ or ()
    for name, value in captured_globals(fn).items():
        yield "`{}`", name, value
    for name, cell in zip(code.co_freevars, fn.__closure__ or (), strict=True):
        with suppress(ValueError):  # not assigned yet
            yield "`{}`", name, cell.cell_contents
    optional = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    given = dict(zip(optional, defaults, strict=True)) | (fn.__kwdefaults__ or {})
    for name, value in given.items():
        yield "the default of `{}`", name, value
    for name, value in vars(fn).items():
        yield "its attribute `{}`", name, value


def _is_of_shell(value: Any) -> bool:
    if isinstance(value, FunctionType | MethodType):
        return (value.__module__, value.__qualname__) in _OF_SHELL
    return any((c.__module__, c.__qualname__) in _OF_SHELL for c in type(value).__mro__)


def check_shell_lines(fn: FunctionType) -> None:
    """Raise `ShellLine` if a function has a line with ``!`` or ``%`` outside of `try`."""
    if "get_ipython" not in names_of(fn.__code__).globals:
        return
    if line := _shell_line(fn.__code__):
        instead = "subprocess.run" if line.startswith("!") else "plain Python"
        raise ShellLine(
            f"{fn.__qualname__}() can't be sent to a worker: the line `{line}` needs IPython, and"
            f" workers run plain Python. Use {instead} in the function, or move the line to another"
            " cell."
        )


@lru_cache(1000)
def _shell_line(code: CodeType) -> str:
    """Return the first such line, as it is written in the notebook; empty if there is none."""
    for now, after in _shell_calls(code):
        if now.argval in _CALLS and not _is_guarded(code, now.offset):
            return (_CALLS[now.argval] + " ".join(map(str, after))).strip()
    nested = (_shell_line(c) for c in code.co_consts if isinstance(c, CodeType))
    return next(filter(None, nested), "")


def _shell_calls(code: CodeType) -> Iterator[tuple[dis.Instruction, list[Any]]]:
    """Yield each attribute of what `get_ipython` returns, and the constants that follow it."""
    steps = [i for i in dis.get_instructions(code) if i.opname.startswith("LOAD_")]
    for k, (before, now) in enumerate(pairwise(steps), 1):
        if before.argval == "get_ipython" and isinstance(now.argval, str):
            following = [i.argval for i in steps[k + 1 : k + 3] if i.opname == "LOAD_CONST"]
            yield now, following[: 1 if _CALLS.get(now.argval) == "!" else 2]


def _is_guarded(code: CodeType, offset: int) -> bool:
    """Tell whether an instruction is in a `try`, and not only in a `with`."""
    steps = pairwise(dis.get_instructions(code))
    starts = {now.offset: (now.opname, after.opname) for now, after in steps}
    return any(
        entry.start <= offset < entry.end
        and starts.get(entry.target, ("", ""))[0] == "PUSH_EXC_INFO"
        and starts[entry.target][1] != "WITH_EXCEPT_START"
        for entry in dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]
    )
