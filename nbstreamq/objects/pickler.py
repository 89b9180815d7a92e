"""The pickler: cloudpickle, which here also pickles modules beside the notebook by value.

Imported late, because cloudpickle is slow to import.
"""

from __future__ import annotations

import builtins
import copyreg
import enum
import functools
import importlib
import importlib.machinery
import importlib.util
import io
import pickle
import random
import sys
import types
import uuid
import weakref
from collections.abc import Callable
from typing import Any

import cloudpickle.cloudpickle as cp

from .bytecode import names_of, needed_modules
from .classes import is_made_by_code, reduce_class, reduce_member
from .large_values import MessageWithRefs, ValueWriter
from .mapped_arrays import reduce_mapped
from .modules import is_local
from .random_numbers import reducers
from .references import Ref, TaskOnly
from .shell_lines import captured_globals, check_shell_lines
from .standard import (
    REDUCERS,
    by_reference,
    is_descriptor,
    is_generic,
    is_proxy,
    reduce_descriptor,
    reduce_generic,
    reduce_proxy,
)
from .surroundings import arriving_here

#: Id of this process: a module that comes back to it is found, and not made again.
_HOME = uuid.uuid4().hex
#: The ids of the processes that received modules come from.
_homes: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()

#: Functions that look up global names as strings, or run code in strings.
_BY_TEXT = frozenset({"eval", "exec", "globals"})
#: How objects of a type are pickled, except those that `Pickler.reducer_override` handles.
_REDUCERS = cp.Pickler._dispatch_table | REDUCERS  # noqa: SLF001
#: Attributes of a module about its import, which would be wrong in another process.
_NOT_SENT = frozenset({"__builtins__", "__cached__", "__loader__", "__spec__"})


def pickled(value: object, *, min_external_bytes: int | None = None, maps: bool = False) -> Pickler:
    """Return a pickler that has pickled `value`; buffers of `min_external_bytes` are left out."""
    pickler = Pickler(io.BytesIO(), min_external_bytes=min_external_bytes, maps=maps)
    try:
        pickler.dump(value)
    except MemoryError:
        raise
    except Exception:
        if not pickler.sent_modules:
            raise
        # A local module may hold things that the function doesn't need, such as a lock: omit them.
        pickler = Pickler(
            io.BytesIO(), lenient=True, min_external_bytes=min_external_bytes, maps=maps
        )
        pickler.dump(value)
    return pickler


class Pickler(cp.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Pickles functions, classes and modules by value where a worker can't import them.

    Parameters
    ----------
    file
        Where the bytes go; anything with ``write``.
    lenient
        Leave out of local modules what can't be pickled, instead of failing.
    entered
        Names of the modules whose contents are being tried; these are not pickled again.
    min_external_bytes
        Bytes from which buffers are left out of the pickle; None: none is.
    maps
        Send an array that maps a file as that file, and not as a copy of its elements.

    Attributes
    ----------
    filenames
        Source files of the functions pickled by value.
    sent_modules
        Whether a whole module was pickled by value.
    is_harmless
        Whether only code of Python and NumPy runs when it is unpickled.
    buffers
        The buffers that were left out.
    generators
        Random number generators of which the pickle has a copy.
    held
        The messages and Refs that were pickled: their values must live as long as the pickle.
    """

    def __init__(
        self,
        file: Any,
        *,
        lenient: bool = False,
        entered: frozenset[str] = frozenset(),
        min_external_bytes: int | None = None,
        maps: bool = False,
    ) -> None:
        self.buffers: list[memoryview] = []
        # Not a method: the cycle would keep what was pickled until the garbage collector runs.
        leave_in = (
            functools.partial(_leave_in, self.buffers, min_external_bytes)
            if min_external_bytes
            else None
        )
        # cloudpickle uses a ChainMap, which takes longer to search than most objects to pickle.
        self.generators: list[Any] = []
        self.dispatch_table = copyreg.dispatch_table | _REDUCERS | reducers(self.generators)
        super().__init__(file, protocol=5, buffer_callback=leave_in)
        self.held: list[Any] = []
        self._min_external_bytes = min_external_bytes
        self._maps = maps
        self._file = file
        self.filenames: set[str] = set()
        self.sent_modules = False
        self.is_harmless = True
        self._lenient = lenient
        self._entered = entered

    def message(
        self, writer: ValueWriter | None, what: str, min_external_bytes: int | None = None
    ) -> bytes:
        """Return the message for what was pickled; large parts of it go to `writer`."""
        body: bytes = self._file.getvalue()
        if writer is None:
            return body
        return writer.pack(
            body, self.buffers, what, others=self.held, min_external_bytes=min_external_bytes
        )

    def reducer_override(self, obj: Any) -> Any:
        """Return how to make `obj` again; NotImplemented leaves it to pickle."""
        if type(obj) not in _numpys_types:  # a fast check: there may be many of these
            self.is_harmless &= _is_numpys(obj)
            if type(obj) not in _numpys_types:
                return self._reduce(obj)
        # Only an array has a base: the object that owns its memory.
        has_owner = self._maps and getattr(obj, "base", None) is not None
        return reduce_mapped(obj) if has_owner else NotImplemented

    def _reduce(self, obj: Any) -> Any:
        if isinstance(obj, types.FunctionType):
            return NotImplemented if by_reference(obj) else self._reduce_function(obj)
        if isinstance(obj, type):
            return self._reduce_class(obj)
        if isinstance(obj, types.ModuleType):
            return self._reduce_module(obj) if is_local(obj) else NotImplemented
        return self._reduce_instance(obj)

    def _reduce_instance(self, obj: Any) -> Any:
        if isinstance(obj, enum.Enum):
            return NotImplemented if by_reference(type(obj)) else reduce_member(obj)
        if isinstance(obj, MessageWithRefs | TaskOnly):
            return self._reduce_holder(obj)
        if is_descriptor(obj):
            return reduce_descriptor(obj)
        if isinstance(obj, random.Random) and type(obj) is not random.Random:
            self.generators.append(obj)
        return reduce_proxy(obj) if is_proxy(obj) else _reduce_tensor(obj, self._min_external_bytes)

    def _reduce_holder(self, obj: Any) -> Any:
        if not isinstance(obj, MessageWithRefs | Ref):
            return obj._reduce_for_task()
        self.held.append(obj)
        if isinstance(obj, MessageWithRefs):
            return NotImplemented
        # In a pickle that may outlive this process, it must refer to values that do so, too.
        return obj._reduce_for_task() if self._min_external_bytes else obj._reduce_durable()

    def _reduce_function(self, func: types.FunctionType) -> Any:
        return reduce_generic(func) if is_generic(func) else self._dynamic_function_reduce(func)

    def _dynamic_function_reduce(self, func: types.FunctionType) -> Any:
        self.filenames.add(func.__code__.co_filename)
        reduced = super()._dynamic_function_reduce(func)
        make, args, state, *_ = reduced
        slots = state[1]
        check_shell_lines(func)
        names, defined = names_of(func.__code__), func.__globals__
        # cloudpickle overlooks the globals that the body of a nested class reads.
        slots["__globals__"] = captured_globals(func)
        slots["_cloudpickle_submodules"] += needed_modules(func)
        sets = names.sets - defined.keys()
        reads = {n for n in names.globals if n not in defined and not hasattr(builtins, n)}
        by_text = not _BY_TEXT.isdisjoint(names.globals)
        if not (reads or sets or by_text):
            return reduced
        shared = (state, sorted(reads | sets), sorted(sets), by_text)
        return make, args, shared, None, None, share_globals

    def _reduce_class(self, cls: type) -> Any:
        if not is_made_by_code(cls) or by_reference(cls):
            return super().reducer_override(cls)  # which knows the types that have no name
        return reduce_class(cls)

    def _reduce_module(self, module: types.ModuleType) -> Any:
        self.sent_modules = True
        name = module.__name__
        home = _homes.get(module, _HOME)
        state = {k: v for k, v in vars(module).items() if k not in _NOT_SENT}
        missing: dict[str, str] = {}
        if name in self._entered:
            state = {}
        elif self._lenient:
            missing = self._unpicklable(name, state)
        kept = {k: v for k, v in state.items() if k not in missing}
        return make_module, (name, home), (home, kept, missing), None, None, set_module_state

    def _unpicklable(self, module: str, state: dict[str, Any]) -> dict[str, str]:
        """Return the values of a module that can't be pickled, by name, and why."""
        entered = self._entered | {module}
        missing = {}
        for name, value in state.items():
            try:
                Pickler(Sink(), lenient=True, entered=entered).dump(value)
            except Exception as error:  # noqa: BLE001  # user code raises anything
                missing[name] = str(error)
        return missing


#: The types of NumPy's arrays, numbers, ... that were pickled so far.
_numpys_types: set[type] = set()


def _is_numpys(obj: Any) -> bool:
    has_name = isinstance(obj, type | types.FunctionType | types.BuiltinFunctionType)
    module = getattr(obj if has_name else type(obj), "__module__", None)
    is_numpys = str(module).partition(".")[0] == "numpy"
    if is_numpys and not has_name:
        _numpys_types.add(type(obj))
    return is_numpys


def _leave_in(left_out: list[memoryview], least: int, buffer: pickle.PickleBuffer) -> bool:
    """Tell whether a buffer is small and stays in the pickle; if not, add it to `left_out`."""
    raw = buffer.raw()
    if raw.nbytes < least:
        return True
    left_out.append(raw)
    return False


def _reduce_tensor(obj: Any, least: int | None) -> Any:
    """Send a large tensor of PyTorch as an array of NumPy in the same memory.

    PyTorch would copy the tensor into the pickle; NumPy leaves its buffer out.
    """
    torch = sys.modules.get("torch")
    if torch is None or type(obj) is not getattr(torch, "Tensor", None) or vars(obj):
        return NotImplemented
    try:
        is_large = least is not None and obj.nbytes >= least
        return (tensor_of, (obj.numpy(),)) if is_large else NotImplemented
    except (TypeError, RuntimeError):  # on another device, sparse, with gradients, of float8, ...
        return NotImplemented


def tensor_of(array: Any) -> Any:
    """Return a tensor in the memory of `array`."""
    return importlib.import_module("torch").from_numpy(array)


# -- trying out a pickle ------------------------------------------------------------------------


class Sink:
    """A file that drops what is written to it, to find out whether something can be pickled."""

    def write(self, data: Any) -> int:
        return len(data)


class Rehearsal(pickle.Unpickler):
    """An unpickler that tests a pickle, without changes to classes and modules."""

    def find_class(self, module: str, name: str) -> Any:
        if name in {"fill_class", "set_module_state"} and module.startswith(_OWN):
            return _leave
        if module == __name__ and name == "make_module":
            return _make_unregistered
        return super().find_class(module, name)


_OWN = __name__.rpartition(".")[0]


def _leave(thing: Any, _state: Any) -> Any:
    return thing


def _make_unregistered(name: str, _home: str) -> types.ModuleType:
    return types.ModuleType(name)


# -- on arrival ---------------------------------------------------------------------------------


def share_globals(
    function: types.FunctionType, state: tuple[Any, list[str], list[str], bool]
) -> types.FunctionType:
    """Fill a function that reads or sets globals which its notebook does not define."""
    own, reads, sets, by_text = state
    cp._function_setstate(function, own)  # noqa: SLF001
    if surroundings := arriving_here():
        surroundings.share(function.__globals__, set(reads), set(sets), by_text=by_text)
    return function


def make_module(name: str, home: str) -> types.ModuleType:
    """Return the module itself in the process that sent it; elsewhere a new one.

    Only the functions that it came with can import it: others may have come with another module of
    this name.
    """
    if home == _HOME and name in sys.modules:
        return sys.modules[name]
    module = types.ModuleType(name)
    _homes[module] = home
    if surroundings := arriving_here():
        surroundings.add_module(module)
    return module


def set_module_state(
    module: types.ModuleType, homed: tuple[str, dict[str, Any], dict[str, str]]
) -> types.ModuleType:
    """Fill a module that was received; access to a value that was not sent says why."""
    home, state, missing = homed
    if home == _HOME:
        return module
    vars(module).update(state)
    _specify(module)
    if missing and "__getattr__" not in state:
        vars(module)["__getattr__"] = _explain_missing(module.__name__, missing)
    return module


def _specify(module: types.ModuleType) -> None:
    """Set the spec of a module that was received: other code looks for data files beside it."""
    file, folders = vars(module).get("__file__"), vars(module).get("__path__")
    spec: Any
    if isinstance(file, str):
        spec = importlib.util.spec_from_file_location(
            module.__name__, file, submodule_search_locations=folders and list(folders)
        )
    else:  # a namespace package
        spec = importlib.machinery.ModuleSpec(module.__name__, None, is_package=True)
        spec.submodule_search_locations = list(folders or ())
    module.__spec__, module.__loader__ = spec, spec and spec.loader


def _explain_missing(module: str, missing: dict[str, str]) -> Callable[[str], Any]:
    def missed(name: str) -> Any:
        text = f"module {module!r} has no attribute {name!r}"
        if name in missing:
            text += f" here: it was not sent because it can't be pickled: {missing[name]}"
        raise AttributeError(text, name=name)

    return missed
