"""Arrays that map a file travel as that file: what a task writes into one is in the file."""

from __future__ import annotations

import importlib
import mmap
import pickle
import socket
import sys
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["make_mapped", "reduce_mapped"]


class _Region(NamedTuple):
    """Where the elements of an array are in a file.

    Attributes
    ----------
    filename, inode
        Which file it is. Machines that share a file system see the same inode.
    mode
        ``r`` or ``r+``, as NumPy has it.
    first, n_bytes
        The bytes from the lowest element to the highest one.
    origin
        The first element's place in these bytes: strides may be negative.
    """

    filename: str
    inode: int
    mode: str
    first: int
    n_bytes: int
    origin: int


def reduce_mapped(array: Any) -> Any:
    """Return how to map the file of `array` again; NotImplemented if it is to be copied.

    Raises
    ------
    PicklingError
        It writes to a file that has no name, or has gone: a copy would lose what a task writes.
    """
    # Most arrays with a base are views of one that has its own memory.
    if type(array.base).__name__ == "ndarray" and array.base.base is None:
        return NotImplemented
    owner = _owner_of(array)
    if owner is None or owner.mode == "c" or not array.size:
        return NotImplemented
    try:
        found = Path(owner.filename).stat()
    except (OSError, TypeError):
        if owner.mode == "r":
            return NotImplemented
        raise pickle.PicklingError(
            f"it maps {owner.filename or 'a file without a name'}, which a worker can't open, and"
            " what a task writes into a copy is lost. Pass numpy.array(...) of it, a copy"
        ) from None
    numpy = sys.modules["numpy"]
    mapping = numpy.frombuffer(owner._mmap, numpy.uint8)  # noqa: SLF001 - NumPy has no other name
    mapped_from = owner.offset - owner.offset % mmap.ALLOCATIONGRANULARITY
    position = mapped_from + _address(array) - _address(mapping)
    steps = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    before = -sum(step for step in steps if step < 0)
    after = sum(step for step in steps if step > 0)
    region = _Region(
        str(owner.filename),
        found.st_ino,
        "r" if owner.mode == "r" else "r+",
        position - before,
        before + after + array.itemsize,
        before,
    )
    is_memmap = isinstance(array, numpy.memmap)
    layout = array.dtype, array.shape, array.strides
    return make_mapped, (tuple(region), layout, array.flags.writeable, is_memmap)


def _owner_of(array: Any) -> Any:
    """Return the `numpy.memmap` that has mapped the memory of `array`; None if none has."""
    numpy = sys.modules["numpy"]
    owner = None
    while isinstance(array, numpy.ndarray):
        if isinstance(array, numpy.memmap) and array._mmap is not None:  # noqa: SLF001
            owner = array
        array = array.base
    return owner


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def make_mapped(
    region: tuple[Any, ...], layout: tuple[Any, ...], writeable: bool, is_memmap: bool
) -> Any:
    """Return an array in a file, as `reduce_mapped` has described it.

    Raises
    ------
    OSError
        The file is missing on this machine, or it is another one, or too short.
    """
    np: Any = importlib.import_module("numpy")
    filename, inode, mode, first, n_bytes, origin = _Region(*region)
    where = f"on {socket.gethostname()}, where this worker runs"
    advice = "Put it where all workers see it, or pass numpy.array(...) of the array, a copy."
    try:
        found = Path(filename).stat()
    except OSError as error:
        text = f"an array of the call maps {filename}, which can't be opened {where}. {advice}"
        raise type(error)(error.errno, text) from None
    if found.st_ino != inode or found.st_size < first + n_bytes:
        raise OSError(
            f"An array of the call maps {filename}, and that is another file {where}, or it has"
            f" been replaced or cut since. {advice}"
        )
    whole: Any = np.memmap(filename, np.uint8, mode, offset=first, shape=(n_bytes,))
    dtype, shape, strides = layout
    array: Any = np.ndarray(shape, dtype, whole, origin, strides)
    if is_memmap:
        array = array.view(np.memmap)
        array._mmap, array.mode = whole._mmap, mode  # noqa: SLF001 - as above
        array.filename, array.offset = whole.filename, first + origin
    if not writeable:
        array.flags.writeable = False
    return array
