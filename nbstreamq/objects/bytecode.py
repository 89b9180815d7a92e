"""What a code object refers to, and what it does: its global names, imports and instructions."""

from __future__ import annotations

import dis
import inspect
import sys
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from .modules import is_local

_READS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_REBINDS = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})
_REBINDS_CELL = frozenset({"STORE_DEREF", "DELETE_DEREF"})
#: Names in the body of a class for its location and documentation.
OF_TEXT = frozenset({"__doc__", "__firstlineno__", "__static_attributes__"})
#: CO_HAS_DOCSTRING: the flag of code with a docstring, from Python 3.13 on; unused before.
_HAS_DOCSTRING = 0x4000000
#: Instructions without an effect of their own.
_FILLING = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "PUSH_NULL", "RESUME"})


@dataclass(frozen=True)
class CodeNames:
    """The names in a code object and in those nested in it.

    Attributes
    ----------
    globals
        Global names that it reads, in order of appearance.
    imports
        Modules that it imports, and by how many dots: (0, "os.path"), (2, "sibling"), (1, "").
    sets
        Global names that it assigns to, or deletes.
    rebinds
        Whether it assigns to globals or to variables of an enclosing function.
    """

    globals: tuple[str, ...]
    imports: tuple[tuple[int, str], ...]
    sets: frozenset[str]
    rebinds: bool


@lru_cache(4096)
def names_of(code: CodeType) -> CodeNames:
    """Return the names in `code`; cached, because disassembling is slow."""
    reads: dict[str, None] = {}
    imports: dict[tuple[int, str], None] = {}
    sets: set[str] = set()
    rebinds = False
    # The two values loaded before: an import takes its level and the names to import.
    loaded: tuple[Any, Any] = (0, None)
    for op in _instructions(code):
        name = op.argval
        if op.opname in _READS:
            reads[name] = None
        elif op.opname == "IMPORT_NAME":
            imports[loaded[0], name] = None
        elif op.opname in _REBINDS:
            reads[name] = None
            sets.add(name)
        elif op.opname in _REBINDS_CELL and name in code.co_freevars:
            rebinds = True
        if op.opname != "EXTENDED_ARG":
            loaded = loaded[1], name
    return CodeNames(tuple(reads), tuple(imports), frozenset(sets), rebinds or bool(sets))


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant)


def imported_names(fn: FunctionType) -> set[str]:
    """Return the full names of the modules that `fn` imports in its body, parents included."""
    found: set[str] = set()
    package = (fn.__globals__.get("__package__") or "").split(".")
    for level, name in names_of(fn.__code__).imports:
        base = package[: len(package) - level + 1] if level else []
        parts = [*base, *name.split(".")]
        found.update(".".join(parts[: i + 1]) for i in range(len(parts)) if parts[i])
    return found


def needed_modules(fn: FunctionType) -> list[ModuleType]:
    """Return the local modules that `fn` imports in its body, as far as they are loaded here."""
    modules = (sys.modules.get(name) for name in sorted(imported_names(fn)))
    return [m for m in modules if isinstance(m, ModuleType) and is_local(m)]


def steps_of(code: CodeType) -> Any:
    """Return what code does, without its name, location and documentation."""
    flags = code.co_flags & ~_HAS_DOCSTRING
    n_arguments = code.co_argcount + code.co_kwonlyargcount
    n_arguments += bool(flags & inspect.CO_VARARGS) + bool(flags & inspect.CO_VARKEYWORDS)
    names = code.co_varnames[:n_arguments], code.co_freevars
    return _steps(code), names, (code.co_argcount, code.co_posonlyargcount, flags)


def _steps(code: CodeType) -> Any:
    """Return the instructions, and those that each exception handler protects.

    They don't depend on the file that the code is in, as the bytecode does: ``time.sleep(1)`` is
    compiled differently where `time` is imported in the same file, and in a notebook.
    """
    bytecode = dis.Bytecode(code)
    kept = [i for i in bytecode if i.opname not in _FILLING]
    silent = {k for k, i in enumerate(kept) if i.opname == "STORE_NAME" and i.argval in OF_TEXT}
    kept = [i for k, i in enumerate(kept) if k not in silent and k + 1 not in silent]
    offsets = [i.offset for i in kept]
    jumps = {*dis.hasjrel, *dis.hasjabs}

    def argument(i: dis.Instruction) -> Any:
        if i.opcode in jumps:
            return bisect_left(offsets, i.argval)
        # The value of a constant and not its number: a docstring takes a number, too.
        return i.argval if i.opcode in dis.hasconst or isinstance(i.argval, str) else i.arg

    names = ("LOAD_ATTR" if i.opname == "LOAD_METHOD" else i.opname for i in kept)
    handlers = [
        [bisect_left(offsets, at) for at in (entry.start, entry.end, entry.target)]
        for entry in bytecode.exception_entries  # type: ignore[attr-defined]
    ]
    return list(zip(names, map(argument, kept), strict=True)), handlers
