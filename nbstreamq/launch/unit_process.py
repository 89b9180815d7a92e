"""A process of this machine that is a unit, or ssh's connection to one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Sequence

from ..settings import environment_without_secrets
from .launcher import LOG_LINES
from .lifeline import DRAIN, HURRY


class UnitProcess:
    """A process whose standard input is a lifeline, and what it logs.

    Parameters
    ----------
    command
        What to run; it gets no secret in its environment.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open as long as the unit
        self.process = subprocess.Popen(  # noqa: S603 - our own command, or the user's ssh
            command,
            env=environment_without_secrets(),
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,  # Ctrl-C in this terminal must not reach it
        )

    def log(self) -> str:
        return os.pread(self._output.fileno(), 2**20, 0).decode(errors="replace")

    def tail(self) -> str:
        return "\n".join(self.log().splitlines()[-LOG_LINES:])

    def write(self, data: bytes) -> None:
        """Write to its standard input; if it has ended, its log says why."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: it was let go before
            if self.process.stdin:
                self.process.stdin.write(data)
                self.process.stdin.flush()

    def end(self, *, drain: bool) -> None:
        """Tell it to end, after its running calls or at once, and let go of the lifeline."""
        self.write(DRAIN if drain else HURRY)
        self._let_go()

    def _let_go(self) -> None:
        with contextlib.suppress(OSError):  # what is left to write can't be written
            if self.process.stdin:
                self.process.stdin.close()

    def close(self) -> None:
        self._let_go()
        self._output.close()
