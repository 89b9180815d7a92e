"""Objects of the standard library that pickle refuses, or sends as a name unknown to a worker."""

from __future__ import annotations

import dataclasses
import functools
import socket
import sys
import types
import typing
import weakref
from collections.abc import Callable
from typing import Any

import cloudpickle.cloudpickle as cp

from .classes import id_of, known_or
from .modules import is_local

#: The code that all functions of `functools.singledispatch` share.
_GENERIC = functools.singledispatch(lambda _: None).__code__  # type: ignore[attr-defined]
#: The type of a function of `functools.lru_cache`.
lru_cache_wrapper = type(functools.lru_cache(int))
#: Position of the file name among the arguments of `types.CodeType`.
_FILENAME = 10


def by_reference(thing: Any) -> bool:
    """Tell whether a function, class or type is pickled as the name that a worker imports it by."""
    found = cp._lookup_module_and_qualname(thing)  # noqa: SLF001
    if found is None:
        return False
    module = found[0]
    if module.__name__ == "__mp_main__":  # the main script, in a child of multiprocessing
        return False
    return not (cp._is_registered_pickle_by_value(module) or is_local(module))  # noqa: SLF001


def _reduce_code(code: types.CodeType) -> Any:
    """Keep the file name, by which tracebacks find the source; cloudpickle drops it since 3.1.3."""
    make, args = cp._code_reduce(code)  # noqa: SLF001
    return make, (*args[:_FILENAME], code.co_filename, *args[_FILENAME + 1 :])


# functools


def is_generic(function: types.FunctionType) -> bool:
    """Tell whether a function was made by `functools.singledispatch`."""
    return function.__code__ is _GENERIC


def reduce_generic(function: Any) -> Any:
    """Send a generic function as its implementations, without its cache."""
    state = dict(function.registry), vars(function.__wrapped__)
    names = function.__module__, function.__name__, function.__qualname__, function.__doc__
    return make_generic, names, state, None, None, set_implementations


def make_generic(module: str, name: str, qualname: str, doc: str | None) -> Any:
    """Return a generic function; its implementations are set later, because they may call it."""

    def default(*_: Any) -> Any:
        raise NotImplementedError

    default.__module__, default.__name__ = module, name
    default.__qualname__, default.__doc__ = qualname, doc
    return functools.singledispatch(default)


def set_implementations(function: Any, state: tuple[dict[type, Any], dict[str, Any]]) -> None:
    """Set the implementations of a function of `make_generic`."""
    implementations, attributes = state
    for cls, implementation in implementations.items():
        function.register(cls, implementation)
    vars(function).update(attributes, __wrapped__=implementations[object])


def _reduce_generic_method(found: functools.singledispatchmethod[Any]) -> Any:
    return make_generic_method, (), {"func": found.func, "dispatcher": found.dispatcher}


def make_generic_method() -> Any:
    """Return a generic method without implementations; since Python 3.13 it has a cache."""
    return functools.singledispatchmethod(lambda _: None)


def _reduce_lru_cache(wrapper: Any) -> Any:
    """Send a cached function without its cache; pickle would send only its name."""
    if by_reference(wrapper):
        return wrapper.__qualname__
    parameters = wrapper.cache_parameters()
    args = parameters["maxsize"], parameters["typed"]
    return make_lru_cache, args, wrapper.__wrapped__, None, None, set_cached_function


def make_lru_cache(maxsize: int | None, typed: bool) -> Any:
    """Return an empty cache; its function is set later, because it may refer to the cache."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return wrapper.__wrapped__(*args, **kwargs)

    wrapper = functools.lru_cache(maxsize, typed)(call)
    return wrapper


def set_cached_function(wrapper: Any, function: Callable[..., Any]) -> Any:
    """Give a cache from `make_lru_cache` its function."""
    return functools.update_wrapper(wrapper, function)


#: The arguments that make descriptors of these types and their subclasses.
_PARTS: dict[type, tuple[str, ...]] = {
    property: ("fget", "fset", "fdel"),
    classmethod: ("__func__",),
    staticmethod: ("__func__",),
    functools.cached_property: ("func",),
}
_DESCRIPTORS = tuple(_PARTS)
_KNOWN_TO_CLOUDPICKLE = frozenset({property, classmethod, staticmethod})


def is_descriptor(found: Any) -> bool:
    """Tell whether an object is a descriptor that pickle would send without its functions."""
    return isinstance(found, _DESCRIPTORS) and type(found) not in _KNOWN_TO_CLOUDPICKLE


def reduce_descriptor(found: Any) -> Any:
    """Send a descriptor as the arguments that it was made with, and its attributes."""
    base = next(cls for cls in _PARTS if isinstance(found, cls))
    args = tuple(getattr(found, name) for name in _PARTS[base])
    # In Python 3.11 a cached property has a lock.
    state = {name: value for name, value in vars(found).items() if name != "lock"}
    return make_descriptor, (type(found), base, args), state


def make_descriptor(cls: Any, base: Any, args: tuple[Any, ...]) -> Any:
    """Return a descriptor of type `cls`, without calling its own ``__init__``."""
    made = cls.__new__(cls)
    base.__init__(made, *args)
    return made


# weakref


def _reduce_weak_dictionary(found: Any) -> Any:
    return type(found), (dict(found),)


# typing


def _reduce_new_type(found: Any) -> Any:
    if by_reference(found):
        return found.__qualname__
    names = found.__module__, found.__qualname__
    return make_new_type, (id_of(found), found.__supertype__, *names)


def make_new_type(id_: str, of: Any, module: str, qualname: str) -> Any:
    """Return the `NewType` with this id."""
    made: Any = typing.NewType(qualname, of)  # type: ignore[misc]
    made.__module__ = module
    return known_or(id_, made)


def _reduce_variable(found: Any) -> Any:
    if by_reference(found):
        return found.__name__
    options: dict[str, Any] = {}
    for name in ("bound", "covariant", "contravariant", "infer_variance"):
        if (value := getattr(found, f"__{name}__", None)) not in (None, False):
            options[name] = value
    if getattr(found, "has_default", bool)():  # from Python 3.13 on
        options["default"] = found.__default__
    if options.keys() == {"bound", "infer_variance"}:  # as in ``class Node[T: Node]``
        return make_bound, (id_of(found), found.__name__, _late(found, options["bound"]))
    args = (found.__name__, *getattr(found, "__constraints__", ()))
    return make_variable, (id_of(found), type(found), args, options)


def make_variable(id_: str, kind: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Return the type variable with this id."""
    return known_or(id_, kind(*args, **options))


def make_bound(id_: str, name: str, bound: list[Any]) -> Any:
    """Return the type variable of ``def f[name: bound[0]]``, which reads its bound late."""
    namespace: dict[str, Any] = {"bound": bound}
    exec(f"def f[{name}: bound[0]](): pass", namespace)  # noqa: S102 - a statement of our own
    return known_or(id_, namespace["f"].__type_params__[0])


def _reduce_variable_part(found: Any) -> Any:
    return type(found), (found.__origin__,)


def _reduce_alias(found: Any) -> Any:
    if by_reference(found):
        return found.__name__
    variables = found.__type_params__
    if variables and not _names(found.__value__, found):
        return make_alias_of, (found.__name__, found.__value__, variables)
    signs = {typing.TypeVarTuple: "*", typing.ParamSpec: "**"}
    names = ", ".join(signs.get(type(one), "") + one.__name__ for one in variables)
    head = f"{found.__name__}[{names}]" if names else found.__name__
    return make_alias, (head, found.__name__, found.__module__, _late(found, found.__value__))


def _names(value: Any, alias: Any) -> bool:
    """Tell whether a type names an alias."""
    parts = (getattr(value, "__origin__", None), *getattr(value, "__args__", ()))
    return value is alias or any(part is not None and _names(part, alias) for part in parts)


def _late(of: Any, value: Any) -> list[Any]:
    """Return a list with `value`, the same list each time: the value may refer to `of`."""
    return _values.setdefault(of, [value])


#: The values of aliases and type variables that read them late.
_values: dict[Any, list[Any]] = {}


def make_alias(head: str, name: str, module: str, value: list[Any]) -> Any:
    """Return the alias that ``type head = value[0]`` defines, which reads its value late."""
    namespace = {"value": value, "__name__": module}
    exec(f"type {head} = value[0]", namespace)  # noqa: S102 - a statement of our own
    return namespace[name]


def make_alias_of(name: str, value: Any, variables: tuple[Any, ...]) -> Any:
    """Return the alias that ``type name[variables] = value`` defines."""
    alias: Any = typing.TypeAliasType  # type: ignore[attr-defined]  # from Python 3.12 on
    return alias(name, value, type_params=variables)


# multiprocessing


def is_proxy(found: Any) -> bool:
    """Tell whether an object is a proxy of a `multiprocessing` manager."""
    managers = sys.modules.get("multiprocessing.managers")
    return managers is not None and isinstance(found, managers.BaseProxy)


def reduce_proxy(proxy: Any) -> Any:
    """Send the proxy of a manager, with the name of this machine."""
    return make_proxy, (*proxy.__reduce__(), socket.gethostname())


def make_proxy(rebuild: Any, args: tuple[Any, ...], machine: str) -> Any:
    """Return a proxy that is connected to its manager.

    Raises
    ------
    ConnectionError
        The manager is on another machine, has ended, or has another authkey than this process.
    """
    from multiprocessing import AuthenticationError

    try:
        return rebuild(*args)
    except (AuthenticationError, OSError, EOFError) as error:
        token = args[1]
        raise ConnectionError(
            f"The proxy of a {token.typeid} in a multiprocessing manager on {machine}"
            f" ({token.address!r}) can't be used here, on {socket.gethostname()}:"
            f" {type(error).__name__}: {error}. Only local workers that this notebook has started"
            " with q.run(n) can use its managers, because they have its authkey. For other workers,"
            " pass plain values and return results."
        ) from error


#: How objects of a type are sent, as in `copyreg.dispatch_table`.
REDUCERS: dict[type, Callable[[Any], Any]] = {
    type(dataclasses.MISSING): lambda _: "MISSING",
    type(dataclasses.KW_ONLY): lambda _: "KW_ONLY",
    types.CodeType: _reduce_code,
    lru_cache_wrapper: _reduce_lru_cache,
    functools.singledispatchmethod: _reduce_generic_method,
    weakref.WeakKeyDictionary: _reduce_weak_dictionary,
    weakref.WeakValueDictionary: _reduce_weak_dictionary,
    typing.NewType: _reduce_new_type,
    typing.TypeVar: _reduce_variable,
    typing.ParamSpec: _reduce_variable,
    typing.TypeVarTuple: _reduce_variable,
    typing.ParamSpecArgs: _reduce_variable_part,
    typing.ParamSpecKwargs: _reduce_variable_part,
}
if sys.version_info >= (3, 12):
    REDUCERS[typing.TypeAliasType] = _reduce_alias
