"""What a code object refers to: global names, imports, and whether it rebinds what it captured."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from .modules import is_local

__all__ = ["CodeNames", "imported_names", "names_of", "needed_modules"]

_READS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_REBINDS = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})
_REBINDS_CELL = frozenset({"STORE_DEREF", "DELETE_DEREF"})


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
    """Return the names in `code`; kept, for disassembling is slow."""
    reads: dict[str, None] = {}
    imports: dict[tuple[int, str], None] = {}
    sets: set[str] = set()
    rebinds = False
    # What was loaded before: an import takes its level and the names to import.
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
