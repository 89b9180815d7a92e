"""A limit of the disk that the embedded server's files take; the server's watchdog keeps it.

The server appends what it writes to a file, and now and then writes its data again into a new one.
It has no limit for these files. So the watchdog measures them. At half of the limit it has the
server write its data again, which takes less. Near the limit it takes the memory away from the
server, which then refuses calls and keeps what it has, until the files are smaller.

The limit is a comment in the configuration file, so it holds at each start of the server.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..wire.connection import Wire

#: Begins the line of the configuration file that has the bytes.
LINE = "# nbstreamq-disk "
#: Most bytes of memory for each byte of disk. More needs more room for writing the data again.
MEMORY_PART = 0.25
#: Parts of the limit: above the first the data are written again, above the second calls are
#: refused, below the third no longer. Between them must be room for what a server writes in `LOOK`.
REWRITE, REFUSE, ALLOW = 0.5, 0.85, 0.7
#: Seconds between two looks. Longer lets more be written beyond the limit.
LOOK = 0.5
#: How much more than the data themselves the file must have, so that writing again is worth it.
_GROWTH = 1.2


def setting(command: list[str], name: str) -> str:
    """Return a setting in the configuration file of a server's command line; empty: none."""
    try:
        with open(command[1], encoding="utf-8") as config:  # noqa: PTH123 - pathlib is slow to import
            found = (line[len(name) :].strip() for line in config if line.startswith(name))
            return next(found, "")
    except OSError:  # The command has no file: the word is an option.
        return ""


class DiskLimit:
    """Keeps the files of a server within a limit.

    Parameters
    ----------
    limit
        Bytes that they may take.
    folder
        Where they are.
    connect
        Returns the connection to the server.
    """

    def __init__(self, limit: int, folder: str, connect: Callable[[], Wire]) -> None:
        self._limit, self._folder, self._connect = limit, folder, connect
        self._looked = 0.0
        self._memory: bytes | None = None  #: what it may use again; None: it does not refuse calls

    def keep(self) -> None:
        """Look at the files, if it is time, and do what is needed."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        from ..errors import ServerError

        try:
            self._adapt(used_in(self._folder) / self._limit)
        except ServerError as error:  # The server is loading, or busy.
            sys.stderr.write(f"The limit of disk can't be kept now: {error}\n")

    def _adapt(self, part: float) -> None:
        if part < REWRITE and self._memory is None:
            return
        from ..wire.records import DISK_IS_FULL, read_info

        wire = self._connect()
        if self._memory is None and part > REFUSE:
            (found,) = wire.call(("CONFIG", "GET", "maxmemory"))
            wire.call(("CONFIG", "SET", "maxmemory", str(DISK_IS_FULL)))
            self._memory = found[1]
            sys.stderr.write(f"Its files take {part:.0%} of {self._limit:,} bytes.\n")
        elif self._memory is not None and part < ALLOW:
            wire.call(("CONFIG", "SET", "maxmemory", self._memory))
            self._memory = None
        (text,) = wire.call(("INFO", "persistence"))
        info = read_info(text.decode())
        is_worth_it = int(info["aof_current_size"]) > _GROWTH * int(info["aof_base_size"])
        if part > REWRITE and is_worth_it and info["aof_rewrite_in_progress"] == "0":
            wire.call(("BGREWRITEAOF",))


def used_in(folder: str) -> int:
    """Return how many bytes the files in a folder take."""
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.stat(f"{parent}/{file}").st_size  # noqa: PTH116 - as above
            except FileNotFoundError:  # It has just been replaced.
                continue
    return total
