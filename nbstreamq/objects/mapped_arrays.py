"""Arrays of NumPy that map a file: sent as that file, so that a task reads and writes it."""

from __future__ import annotations

import importlib
import mmap
import pickle
import socket
import sys
from pathlib import Path
from typing import Any


def reduce_mapped(array: Any) -> Any:
    """Return how to map the file of `array` again; NotImplemented if it must be copied.

    Raises
    ------
    PicklingError
        Its file is writable and has no name, or is gone: a copy would lose what a task writes.
    """
    # Most arrays with a base are views of an array with its own memory.
    if type(array.base).__name__ == "ndarray" and array.base.base is None:
        return NotImplemented
    owner = _owner_of(array)
    if owner is None or owner.mode == "c" or not array.size:
        return NotImplemented
    try:
        inode = Path(owner.filename).stat().st_ino
    except (OSError, TypeError):
        if owner.mode == "r":
            return NotImplemented
        raise pickle.PicklingError(
            f"it maps {owner.filename or 'a file without a name'}, which a worker can't open, and"
            " what a task writes to a copy would be lost. To send a copy all the same, pass"
            " numpy.array(...) of it"
        ) from None
    numpy = sys.modules["numpy"]
    mapping = numpy.frombuffer(owner._mmap, numpy.uint8)  # noqa: SLF001 - NumPy has no other name
    begin = owner.offset - owner.offset % mmap.ALLOCATIONGRANULARITY
    mode = "r" if owner.mode == "r" else "r+"
    file = str(owner.filename), inode, mode, begin, mapping.nbytes
    layout = array.dtype, array.shape, _address(array) - _address(mapping), array.strides
    is_memmap = isinstance(array, numpy.memmap)
    return make_mapped, (file, layout, array.flags.writeable, is_memmap)


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
    file: tuple[str, int, str, int, int],
    layout: tuple[Any, ...],
    writeable: bool,
    is_memmap: bool,
) -> Any:
    """Return an array in a file, as `reduce_mapped` has described it.

    Parameters
    ----------
    file
        Its name and inode, which machines that share a file system see alike; the mode, ``r`` or
        ``r+``; and the first byte and the number of bytes that are mapped.
    layout
        The dtype and shape of the array, the byte of the mapping where it begins, and its strides.

    Raises
    ------
    OSError
        The file is missing on this machine, or it is another one, or too short.
    """
    np: Any = importlib.import_module("numpy")
    filename, inode, mode, begin, n_bytes = file
    where = f"on {socket.gethostname()}, where this worker runs"
    advice = "Move it to a folder that all workers share, or pass a copy: numpy.array(...)."
    try:
        found = Path(filename).stat()
    except OSError as error:
        text = f"An array of the call maps {filename}, which can't be opened {where}. {advice}"
        raise type(error)(error.errno, text) from None
    if found.st_ino != inode or found.st_size < begin + n_bytes:
        raise OSError(
            f"An array of the call maps {filename}. This is another file {where}, or it was"
            f" replaced or truncated since. {advice}"
        )
    whole: Any = np.memmap(filename, np.uint8, mode, offset=begin, shape=(n_bytes,))
    dtype, shape, origin, strides = layout
    array: Any = np.ndarray(shape, dtype, whole, origin, strides)
    if is_memmap:
        array = array.view(np.memmap)
        array._mmap, array.mode = whole._mmap, mode  # noqa: SLF001 - as above
        array.filename, array.offset = whole.filename, begin + origin
    if not writeable:
        array.flags.writeable = False
    return array
