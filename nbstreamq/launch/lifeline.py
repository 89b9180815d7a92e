"""What keeps a unit alive, and leads it to its server."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from ..errors import ServerError

#: What is written to end a unit: after its running calls, or at once.
DRAIN, HURRY = b"drain\n", b"hurry\n"


class Lifeline:
    """The standard input of a unit, behind the line that `receive` reads.

    It ends when the unit is to end, when the process that holds its other end dies, and when the
    connection to that is cut.
    """

    def __init__(self) -> None:
        self._descriptor = os.dup(0)
        #: Id of the session of the client that holds it; empty if another process holds it.
        self.session = ""

    def fileno(self) -> int:
        return self._descriptor

    def last_words(self) -> bytes:
        """Return `DRAIN` or `HURRY`, or nothing if who holds it is gone; close the pipe."""
        said = os.read(self._descriptor, 64)
        self.close()
        return said

    def close(self) -> None:
        os.close(self._descriptor)


def sweep_sockets() -> None:
    """Delete the sockets that ssh has left on this machine for units that were killed."""
    import socket  # slow to import; `nbstreamq --help` comes by here

    for path in Path("/tmp").glob("nbstreamq-*.sock"):  # noqa: S108 - see `socket_in_unit`
        with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:  # others may be quicker
            if path.lstat().st_uid != os.getuid():
                continue
            probe.settimeout(1.0)  # Its ssh may hang.
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()


def check_forwarded(path: str) -> None:
    """Raise `ServerError` if other users may connect to the server by a forwarded socket."""
    found = Path(path).lstat()
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.getuid() or mode & 0o077:
        raise ServerError(
            f"the forwarded socket {path} is not private: it has the mode {mode:o}. Set"
            " `StreamLocalBindMask 0177` in the configuration of ssh and sshd."
        )
