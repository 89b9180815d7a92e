"""Classes that are pickled by value: copied as they are, without the code that made them.

A class statement may run any code: a metaclass, ``__init_subclass__``, a decorator. The results of
that code are in the attributes of the class, and these are sent. So the code does not run again in
a worker, and the arguments of the class statement are not needed.

A class keeps the id that the process of its definition gave it. A process that has a class with
this id uses it, and does not make a second one.
"""

from __future__ import annotations

import abc
import enum
import functools
import hashlib
import importlib
import sys
import threading
import types
import typing
import uuid
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple, cast

from ..worker_context import WorkerContext
from .bytecode import OF_TEXT, steps_of
from .modules import is_local

#: Attributes that Python makes for each class, or uses as a cache.
_OF_PYTHON = frozenset({"__dict__", "__weakref__", "__module__", "__slotnames__", "_abc_impl"})
#: Attributes that are set first, because the class may be subscripted while others are unpickled.
_EARLY = frozenset({"__parameters__", "__type_params__"})
#: Names that a class statement can define for instances, but that can't be set on a class, where
#: they are attributes of `type`.
_OF_TYPE = frozenset(
    {"__base__", "__bases__", "__class__", "__mro__", "__name__", "__text_signature__"}
)
#: Where an enum keeps its members; the second one grows when flags are combined.
_OF_ENUM = frozenset({"_member_map_", "_value2member_map_"})
#: Attributes of a member of an enum that depend on its position, or are a cache.
_OF_MEMBER = frozenset({"__objclass__", "_sort_order_", "_inverted_"})
#: Attributes that are not part of a definition, or repeat another part.
_UNSAID = OF_TEXT | {"__orig_bases__", "__parameters__", "__abstractmethods__"}
_ATOMS = frozenset({int, float, complex, str, bytes, bool, type(None), type(...)})
#: The parts of objects of these types.
_PARTS: dict[type, tuple[str, ...]] = {
    types.FunctionType: ("__code__", "__defaults__", "__kwdefaults__"),
    classmethod: ("__func__",),
    staticmethod: ("__func__",),
    property: ("fget", "fset", "fdel"),
    functools.partial: ("func", "args", "keywords"),
    types.GenericAlias: ("__origin__", "__args__"),
    types.UnionType: ("__args__",),
    typing.TypeVar: ("__name__",),
}
#: Depth to which an attribute is described.
_DEPTH = 8

_lock = threading.Lock()
#: Classes, type variables, ... <-> the ids that they are sent with.
_ids: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_things: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
#: The classes that were unpickled in this process, and the digests of their definitions.
_received: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()
#: The classes of this process -> their contents when they were last looked at, and the digests of
#: their definitions.
_known: weakref.WeakKeyDictionary[type, tuple[list[Any], str]] = weakref.WeakKeyDictionary()


class Label(NamedTuple):
    """What identifies a class: its id, and in other sessions its name and definition."""

    id: str
    module: str
    qualname: str
    definition: str


class _Interruption(Exception):  # noqa: N818 - it is not an error
    """Ends `type.__new__` when the class is made, before its hook runs."""


class _Catcher:
    """An attribute that gets hold of the class that is being made, and ends `type.__new__`."""

    def __set_name__(self, cls: type, _: str) -> None:
        self.cls = cls
        raise _Interruption


def is_made_by_code(cls: type) -> bool:
    """Tell whether a class was made by a class statement, or as one does it, and not in C."""
    return bool(cls.__flags__ & 1 << 9)  # Py_TPFLAGS_HEAPTYPE


def id_of(thing: Any) -> str:
    """Return the id that a class, or a type variable, is sent with."""
    with _lock:
        found = _ids.get(thing)
        if found is None:
            found = _ids[thing] = uuid.uuid4().hex
            _things[found] = thing
        return found


def known_or(id_: str, thing: Any) -> Any:
    """Return the object with this id; if there is none, give the id to `thing` and return it."""
    with _lock:
        known = _things.setdefault(id_, thing)
        _ids.setdefault(known, id_)
    return known


# Classes


def reduce_class(cls: type) -> tuple[Any, ...]:
    """Return how to make `cls` again, as a `__reduce__` does."""
    own = vars(cls)
    definition = _definition_of(cls)  # first: it renews the id
    label = Label(id_of(cls), cls.__module__, cls.__qualname__, definition)
    first = {name: own[name] for name in own if _goes_first(type(cls), name, own[name])}
    later = {name: value for name, value in attributes_of(cls).items() if name not in first}
    first |= {name: property() for name in later.keys() & _OF_TYPE}  # filled later
    slots = [name for name, value in own.items() if _is_slot(value, cls)]
    if slots or "__slots__" in own:
        # With the names that they have now: Python would mangle private ones a second time.
        first["__slots__"] = (*slots, *(k for k in ("__dict__", "__weakref__") if k in own))
    registry: list[type] = []
    if isinstance(cls, abc.ABCMeta):
        dump: Any = abc._get_dump  # type: ignore[attr-defined]  # noqa: SLF001
        registry = [found for ref in dump(cls)[0] if (found := ref()) is not None]
    state = (later, _member_states(cls), _values_of(cls), registry)
    # The metaclass is sent only if the bases don't have it: those of ctypes can't be imported.
    metaclass = None if type(cls) is type(cls.__bases__[0]) else type(cls)
    return make_class, (label, metaclass, cls.__bases__, first), state, None, None, fill_class


def _goes_first(metaclass: type, name: str, value: Any) -> bool:
    """Tell whether an attribute must be set when the class is made, and can't be set later."""
    if name in _EARLY or name == "__module__":
        return True
    if name in _OF_TYPE:
        return not isinstance(value, property)  # whose functions may use the class
    if name in {"__dict__", "__weakref__"}:
        return not isinstance(value, types.GetSetDescriptorType)
    return name in _properties_of(metaclass)


@functools.lru_cache(256)
def _properties_of(metaclass: type) -> frozenset[str]:
    own = {name: value for c in reversed(metaclass.__mro__) for name, value in vars(c).items()}
    return frozenset(name for name, value in own.items() if isinstance(value, property))


def _is_slot(value: Any, cls: type) -> bool:
    return isinstance(value, types.MemberDescriptorType) and value.__objclass__ is cls


def attributes_of(cls: type) -> dict[str, Any]:
    """Return the attributes that the class statement defined, or that were set later."""
    skipped = _OF_PYTHON | _OF_ENUM if issubclass(cls, enum.Enum) else _OF_PYTHON
    return {
        name: value
        for name, value in vars(cls).items()
        if name not in skipped
        and not _is_slot(value, cls)
        and not (name == "__annotations__" and not value)  # made on access
        and type(value).__name__ != "CField"  # ctypes makes them from `_fields_`
    }


def make_class(
    label: Label, metaclass: type | None, bases: tuple[type, ...], first: dict[str, Any]
) -> type:
    """Return the class with this label; if there is none, a bare one that is filled later."""
    known = find_class(label)
    if known is not None:
        return known
    metaclass = metaclass or type(bases[0])
    cls = _make_bare(label, metaclass, bases, first)
    if issubclass(cls, enum.Enum):
        set_attribute = _in_c(metaclass, "__setattr__")
        for name in _OF_ENUM:
            set_attribute(cls, name, {})
    with _lock:
        _received[cls] = label.definition
    return cast("type", known_or(label.id, cls))


def find_class(label: Label) -> type | None:
    """Return the class with this label, or the current one with its name and definition.

    So a result from another kernel, or from before a cell was run again, has the class that the
    session uses. A worker does not search by name: its class may call old functions.
    """
    with _lock:
        known = cast("type | None", _things.get(label.id))
    if not label.definition or WorkerContext.current is not None:
        return known
    if known is None:
        _import(label.module)
    here = _named(label.module, label.qualname)
    if here is None or here is known or here in _received:
        return known
    if _definition_of(here) != label.definition:
        return known
    with _lock:
        _things[label.id] = here
    return here


def _import(module: str) -> None:
    """Import the module of an unknown class, as pickle does, if there is one."""
    if module not in sys.modules:
        with suppress(Exception):
            importlib.import_module(module)


def _named(module: str, qualname: str) -> type | None:
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(name)
    return found if isinstance(found, type) else None


def _make_bare(label: Label, metaclass: type, bases: tuple[type, ...], first: Any) -> type:
    """Make a class without running code of its metaclass, bases or attributes."""
    name = label.qualname.rpartition(".")[2]
    namespace = {"__qualname__": label.qualname, **first}
    make = _in_c(metaclass, "__new__")
    has_hook = any("__init_subclass__" in vars(c) for b in bases for c in b.__mro__[:-1])
    if has_hook and make is type.__new__:
        cls = _make_silently(metaclass, name, bases, namespace)
    else:
        cls = cast("type", make(metaclass, name, bases, namespace))
    _in_c(metaclass, "__init__")(cls, name, bases, namespace)  # ctypes needs it
    if issubclass(metaclass, abc.ABCMeta):
        abc._abc_init(cls)  # type: ignore[attr-defined]  # noqa: SLF001
    return cls


def _make_silently(
    metaclass: type, name: str, bases: tuple[type, ...], namespace: dict[str, Any]
) -> type:
    """Make a class without a call of ``__init_subclass__``, the last step of `type.__new__`.

    The step before that one calls ``__set_name__`` of the attributes.
    """
    catcher = _Catcher()
    # Python 3.11 replaces the error that is raised there by another one.
    with suppress(_Interruption, RuntimeError):
        type.__new__(metaclass, name, bases, {**namespace, "_catcher": catcher})
    type.__delattr__(catcher.cls, "_catcher")
    return catcher.cls


def _in_c(cls: type, name: str) -> Any:
    """Return the first method of this name, in the order of the bases, that is written in C."""
    in_c = (types.BuiltinFunctionType, types.WrapperDescriptorType)
    found = (vars(base).get(name) for base in cls.__mro__)
    return next(method for method in found if isinstance(method, in_c))


def fill_class(cls: type, state: tuple[Any, ...]) -> type:
    """Set the attributes of a class that was received, and delete those that it no longer has.

    A class of this process is not changed: the copy that comes back may be older, and its methods
    have other globals.
    """
    if cls not in _received:
        return cls
    attributes, members, values, registry = state
    if issubclass(cls, enum.Enum):
        _fill_enum(cls, members, values)
    set_attribute, delete = (_in_c(type(cls), name) for name in ("__setattr__", "__delattr__"))
    for name, value in attributes_of(cls).items():
        if name not in attributes and not _goes_first(type(cls), name, value):
            delete(cls, name)
    for name, value in attributes.items():
        if name in _OF_TYPE:
            vars(cls)[name].__init__(value.fget, value.fset, value.fdel, value.__doc__)
        elif name != "_fields_" or name not in vars(cls):  # ctypes lets them be set once
            set_attribute(cls, name, value)
    for other in registry:
        abc.ABCMeta.register(cast("abc.ABCMeta", cls), other)
    return cls


# Enums


def _member_states(cls: type) -> dict[str, Any]:
    """Return the members of an enum by name, including aliases, and the attributes of each."""
    if not issubclass(cls, enum.Enum):
        return {}
    return {name: (member, *_state_of(member)) for name, member in cls._member_map_.items()}


def _state_of(member: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the attributes of a member, and those in slots."""
    state = object.__getstate__(member)
    own, slots = state if isinstance(state, tuple) else (state, None)
    return {k: v for k, v in (own or {}).items() if k != "_inverted_"}, slots or {}


def own_states(cls: type) -> dict[str, Any]:
    """Return the attributes of each member of an enum that do not depend on its position."""
    return {
        name: (_arguments(one), {k: v for k, v in own.items() if k not in _OF_MEMBER}, slots)
        for name, (one, own, slots) in _member_states(cls).items()
    }


def _values_of(cls: Any) -> dict[Any, Any]:
    """Return the members of an enum by value, without combinations of flags."""
    if not issubclass(cls, enum.Enum):
        return {}
    named = set(map(id, cls._member_map_.values()))
    return {value: one for value, one in cls._value2member_map_.items() if id(one) in named}


def _fill_enum(cls: Any, members: dict[str, Any], values: dict[Any, Any]) -> None:
    """Set the members of an enum, and their attributes; keep combinations of flags."""
    named = _values_of(cls)
    combined = {v: one for v, one in cls._value2member_map_.items() if v not in named}
    cls._member_map_.clear()
    for name, (member, own, slots) in members.items():
        cls._member_map_[name] = member
        member.__dict__.update(own)
        for slot, value in slots.items():
            object.__setattr__(member, slot, value)
    cls._value2member_map_.clear()
    cls._value2member_map_.update(combined | values)


def reduce_member(member: Any) -> Any:
    """Return how to find a member of an enum, or how to make it while its class is made."""
    cls, name = type(member), getattr(member, "_name_", None)
    if cls._member_map_.get(name) is member:
        return make_member, (cls, name, _arguments(member))
    if not isinstance(member, enum.Flag):
        return NotImplemented
    return make_combined, (cls, name, member._value_, _arguments(member))


def _arguments(member: Any) -> tuple[Any, ...]:
    """Return the arguments with which the built-in base of an enum makes a member."""
    base = _base_of(type(member))
    if base is object:
        return ()
    if hasattr(base, "__getnewargs__"):
        return cast("tuple[Any, ...]", base.__getnewargs__(member))
    make, args, *_ = base.__reduce_ex__(member, 5)
    return cast("tuple[Any, ...]", args if make is type(member) else args[1:])


def _base_of(cls: type) -> Any:
    """Return the built-in type that makes the instances of `cls`."""
    in_c = types.BuiltinFunctionType
    return next(c for c in cls.__mro__ if isinstance(vars(c).get("__new__"), in_c))


def make_member(cls: Any, name: str, args: tuple[Any, ...]) -> Any:
    """Return a member of an enum; a bare one while its class is made."""
    if cls in _received and name not in cls._member_map_:
        cls._member_map_[name] = _base_of(cls).__new__(cls, *args)
    return cls._member_map_[name]


def make_combined(cls: Any, name: str | None, value: Any, args: tuple[Any, ...]) -> Any:
    """Return a combination of flags; a bare one while its class is made."""
    if cls not in _received or "_member_names_" in vars(cls):
        return cls(value)
    if value not in cls._value2member_map_:
        made = cls._value2member_map_[value] = _base_of(cls).__new__(cls, *args)
        made._name_, made._value_ = name, value
    return cls._value2member_map_[value]


# Definitions


def _definition_of(cls: type) -> str:
    """Return the `definition` of a class; empty if it can't be found by name.

    If the class was changed meanwhile, it gets a new id. So a worker makes a new class, and calls
    that were sent before keep the old one. Instances of both come back as instances of this class.
    """
    if cls in _received:
        return _received[cls]
    now, known = _contents_of(cls), _known.get(cls)
    if known is not None and known[0] == now:
        return known[1]
    if known is not None:
        with _lock:
            _ids[cls] = changed = uuid.uuid4().hex
            _things[changed] = cls
    # Classes in functions, and those that a task has made, can't be found by name.
    is_nameless = "<locals>" in cls.__qualname__ or WorkerContext.current is not None
    _known[cls] = now, "" if is_nameless else definition(cls)
    return _known[cls][1]


def _contents_of(cls: type) -> list[Any]:
    """Return the attributes of a class, and of its bases in this session, without the objects."""
    bases = [base for base in cls.__mro__ if "<locals>" in base.__qualname__ or _is_here(base)]
    return [(name, _code_of(v)) for base in bases for name, v in attributes_of(base).items()]


def _code_of(value: Any) -> Any:
    """Return the code of an attribute, or what else shows a change, without holding the class."""
    if type(value) in _ATOMS:
        return value
    if isinstance(value, property):
        return [_code_of(function) for function in (value.fget, value.fset, value.fdel)]
    function = getattr(value, "__func__", value)
    return getattr(getattr(function, "__wrapped__", function), "__code__", id(value))


def definition(cls: type) -> str:
    """Return a digest, in hex, that is the same where the class statement is the same.

    The code of its methods, the values in its body and its bases count. The globals that the code
    reads do not.
    """
    text = repr(_describe_class(cls, ())).encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _describe_class(cls: type, above: tuple[Any, ...]) -> Any:
    above = (*above, cls)
    bases = [
        _describe_class(base, above) if _is_here(base) else _name_of(base) for base in cls.__bases__
    ]
    own = {name: value for name, value in attributes_of(cls).items() if name not in _UNSAID}
    return _name_of(cls), _name_of(type(cls)), bases, _describe([own, own_states(cls)], above)


def _is_here(cls: type) -> bool:
    """Tell whether a class belongs to this session, and not to a library."""
    module = sys.modules.get(cls.__module__)
    return module is None or module.__name__ in {"__main__", "__mp_main__"} or is_local(module)


def _name_of(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _describe(value: Any, above: tuple[Any, ...]) -> Any:
    """Return nested tuples and lists whose repr is the same in each process."""
    kind = type(value)
    if kind in _ATOMS:
        return kind.__name__, value
    if isinstance(value, type):
        # A nested class is a part of the class; for others the name counts.
        nested = value.__qualname__.startswith(f"{above[0].__qualname__}.") and value not in above
        return _describe_class(value, above) if nested else _name_of(value)
    if len(above) > _DEPTH or any(value is one for one in above):
        return _name_of(kind)
    return _name_of(kind), _describe_parts(value, (*above, value))


def _describe_parts(value: Any, above: tuple[Any, ...]) -> Any:
    if isinstance(value, tuple | list):
        return [_describe(one, above) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(_describe(one, above)) for one in value)
    if isinstance(value, Mapping):
        parts = [(_describe(k, above), _describe(v, above)) for k, v in value.items()]
        return sorted(parts, key=repr)
    if isinstance(value, types.CodeType):
        return _describe(steps_of(value), above)
    own = [getattr(value, name) for name in _PARTS.get(type(value), ())]
    return _describe([own, object.__getstate__(value)], above)
