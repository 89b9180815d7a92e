"""The pipe that keeps a unit alive: its end tells that nobody wants the unit any longer."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import ServerError
from ..secret import Secret

#: What is written to end a unit: after its running calls, or at once.
DRAIN, HURRY = b"drain\n", b"hurry\n"


class Lifeline:
    """The standard input of a unit, behind the line that `receive` reads.

    It ends when the unit is to end, when the client dies, and when the connection to it is cut.
    """

    def __init__(self) -> None:
        self._descriptor = os.dup(0)
        #: Id of the client's session.
        self.session = ""
        self._socket = ""

    def take_from(self, known: dict[str, Secret]) -> None:
        """Take what was handed over for the lifeline out of `known`.

        Raises
        ------
        ServerError
            Other users may connect to the client's server by the forwarded socket.
        """
        self.session = known.pop("session").reveal()
        self._socket = known.pop("socket", Secret("")).reveal()
        if self._socket:
            found = Path(self._socket).lstat()
            if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise ServerError(
                    f"the forwarded socket {self._socket} is not private: it has the mode"
                    f" {stat.S_IMODE(found.st_mode):o}. Set `StreamLocalBindMask 0177` in the"
                    " sshd_config of this machine."
                )

    def fileno(self) -> int:
        return self._descriptor

    def last_words(self) -> bytes:
        """Return `DRAIN` or `HURRY`, or nothing if the client is gone; close the pipe."""
        said = os.read(self._descriptor, 64)
        self.close()
        return said

    def close(self) -> None:
        os.close(self._descriptor)

    def remove_socket(self) -> None:
        """Remove the forwarded socket, which sshd leaves behind."""
        if self._socket:
            Path(self._socket).unlink(missing_ok=True)
