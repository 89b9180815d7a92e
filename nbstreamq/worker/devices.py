"""Which accelerator each worker sees: with ``--device``, every worker has one of its own, or none.

The libraries read the variables below when they are first imported, so a worker sets them before it
runs any foreign code.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable

from ..errors import NbstreamqError

#: What names the devices that CUDA, ROCm and oneAPI show to a process.
VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
#: Seconds in which nvidia-smi must answer: it takes several while a driver starts.
PATIENCE = 30.0
#: The id of a GPU, or of a part of one, in a line of ``nvidia-smi -L``.
_LINE = re.compile(r"\s*(GPU|MIG) .*\(UUID: ([^)]+)\)")


def read_devices(text: str) -> list[str]:
    """Return the ids that ``gpu=auto`` or ``gpu=0,1`` means.

    Raises
    ------
    ValueError
        It is neither.
    NbstreamqError
        There is no device, or that can't be known.
    """
    kind, _, names = text.partition("=")
    found = [name.strip() for name in names.split(",")]
    if kind != "gpu" or not all(name and name.isprintable() for name in found):
        raise ValueError("it must be gpu=auto, or gpu= and ids such as 0,1 or GPU-3f2a...")
    if len(set(found)) < len(found):
        raise ValueError("it names a device twice: use --per-device for workers that share one")
    if found == ["auto"]:
        return _find()
    mask = _mask()
    if mask is not None and (hidden := [name for name in found if name not in mask[1]]):
        raise ValueError(f"device {hidden[0]} is hidden by {mask[0]}={','.join(mask[1])}")
    return found


def _mask() -> tuple[str, list[str]] | None:
    """Return the variable that hides devices from this process, and those that it shows."""
    for variable in VARIABLES:
        if variable in os.environ:
            names = (name.strip() for name in os.environ[variable].split(","))
            return variable, [name for name in names if name not in ("", "-1")]
    return None


def _find() -> list[str]:
    """Return the devices that this process may use."""
    if (mask := _mask()) is not None:
        if not mask[1]:
            raise NbstreamqError(f"there is no device: {mask[0]} hides them all.")
        return mask[1]
    try:
        command = ("nvidia-smi", "-L")
        answer = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        raise NbstreamqError(
            f"The devices can't be listed, since `nvidia-smi -L` failed: {error}. Name them:"
            " --device gpu=0,1."
        ) from None
    lines = map(_LINE.match, answer.stdout.decode(errors="replace").splitlines())
    return _usable((line[1], line[2]) for line in lines if line)


def _usable(found: Iterable[tuple[str, str]]) -> list[str]:
    """Return the ids of the GPUs, or of their parts where one is partitioned (MIG)."""
    devices: list[tuple[str, str]] = []
    for kind, name in found:
        if kind == "MIG" and devices and devices[-1][0] == "GPU":
            devices.pop()  # The parts follow the GPU that they are parts of.
        devices.append((kind, name))
    if not devices:
        raise NbstreamqError("`nvidia-smi -L` lists no device.")
    return [name for _, name in devices]


class Devices:
    """Which device each worker of a supervisor has.

    Parameters
    ----------
    names
        Ids of the devices; None: workers see what their supervisor sees.
    per_device
        How many workers may share one.
    """

    def __init__(self, names: Iterable[str] | None = None, per_device: int = 1) -> None:
        self._free = None if names is None else [name for name in names for _ in range(per_device)]

    @property
    def are_assigned(self) -> bool:
        """Whether workers have devices of their own."""
        return self._free is not None

    def take(self) -> str | None:
        """Return the device of a new worker: empty if all are taken; None if it sees all."""
        if self._free is None:
            return None
        return self._free.pop(0) if self._free else ""

    def give_back(self, device: str | None) -> None:
        """Have the next worker inherit the device of one that has ended."""
        if device and self._free is not None:
            self._free.insert(0, device)


def show_only(device: str | None) -> None:
    """Let this process, and all that it starts, see only a device; empty: none; None: as before."""
    if device is not None:
        os.environ.update(dict.fromkeys(VARIABLES, device or "-1"))
