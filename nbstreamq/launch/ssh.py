"""Workers on a machine that `ssh` leads to, with nothing set up there but Python and nbstreamq.

::

    Units ── stdin: script, secrets, lifeline ──> ssh ──> sh ──exec──> nbstreamq worker
    server's socket <────────── ssh -R ─────────────────── a socket in /tmp there

The system's own client is used, with the user's configuration, agent and jump hosts. It never asks
for anything. No port is opened on either side.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import time
from collections.abc import Collection, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import NbstreamqError
from ..secret import Address, Secret, hide_password
from ..settings import handover
from ..wire.trust import is_local
from .launcher import Launcher, Purpose, Setting, UnitReport, last_line, new_id
from .sync import PREPARING
from .unit_process import UnitProcess

#: Seconds in which a unit must have found its Python. Longer suits slower networks.
START_TIMEOUT = 30.0
#: Seconds in which units end at the end of the session, if they run nothing.
STOP_TIMEOUT = 10.0
#: Seconds between two looks at the log of a unit that starts.
POLL = 0.02
#: Ask for nothing; fail without the forwarded socket; notice a lost connection within a minute.
OPTIONS = (
    "-T -o BatchMode=yes -o ExitOnForwardFailure=yes -o ConnectTimeout=10"
    " -o ServerAliveInterval=15 -o ServerAliveCountMax=3"
)
#: Runs the script in the first line, which leaves the rest of the input to it. All login shells
#: understand it.
_READ_SCRIPT = """exec sh -c 'IFS= read -r script; eval "$(printf %b "$script")"'"""
#: What `socket_in_unit` returns.
_SOCKET = re.compile(r"/tmp/nbstreamq-[0-9a-f]{12}\.sock")  # noqa: S108 - as there
#: What ssh says -> what to do about it.
_HINTS = {
    "Host key verification failed": "connect once by hand, to accept its key: ssh {host}",
    "Permission denied": "ssh must get in without a password: see ssh-copy-id and ssh-add",
    "forwarding failed": "its sshd must allow it: AllowStreamLocalForwarding yes",
    "forwarding disabled": "its sshd must allow it: AllowStreamLocalForwarding yes",
}

#: The exit status of ssh if it has failed itself; else it is that of what it ran.
SSH_FAILED = 255
#: What a worker logs that has nothing to do with its end.
_ROUTINE = re.compile(r" nbstreamq[\w.]* (INFO|DEBUG): ")


class SshLauncher(Launcher):
    """Starts units on another machine, each by a connection that keeps it alive.

    Parameters
    ----------
    on
        ``ssh://me@host``, or ``ssh://host:2222``; what `host` means is up to the user's ssh.
    **setting
        Of a `Setting`.
    """

    unit_size = None  # one connection for each machine: servers refuse many at a time
    look_every = 1.0

    def __init__(self, on: str, purpose: Purpose, **setting: Any) -> None:
        super().__init__(on, purpose)
        self._host = host_in("on", on)
        self._setting = Setting(**setting)
        self._units: dict[str, UnitProcess] = {}

    def start(self, sizes: Sequence[int]) -> list[str]:
        return [self._start(size) for size in sizes]

    def _start(self, n_workers: int) -> str:
        unit = new_id()
        started = UnitProcess([*self._command(unit), _READ_SCRIPT])
        try:
            started.write(self._input(unit, n_workers))
            self._await(started, unit)
        except BaseException:
            started.process.kill()
            started.process.wait()
            started.close()
            raise
        self._units[unit] = started
        return unit

    def _input(self, unit: str, n_workers: int) -> bytes:
        """Return what a unit reads: its script, and what it may know."""
        purpose, script = self.purpose, self._script(unit, n_workers)
        line = script.replace("\\", r"\0134").replace("\n", r"\n").encode() + b"\n"
        known: dict[str, Secret | None] = {
            "url": self._url(unit),
            "secret": purpose.secret,
            "store": purpose.settings.store,
            "session": Secret(purpose.session),
            "socket": Secret(socket_in_unit(unit)) if forwarded(purpose.url) else None,
        }
        return line + handover(**known)

    def _await(self, started: UnitProcess, unit: str) -> None:
        """Return when the unit has found its Python, or uv begins to install what it needs."""
        deadline = time.monotonic() + START_TIMEOUT
        while not (_is_started(log := started.log(), unit) or f"nbstreamq: {PREPARING}" in log):
            if (code := started.process.poll()) is not None:
                why = explain(started.log(), self._host, code)
                raise NbstreamqError(f"No workers start on {self.on}: {why}")
            if time.monotonic() > deadline:
                raise NbstreamqError(
                    f"No workers start on {self.on}: it has not answered for {START_TIMEOUT:g} s."
                    f" Its last line: {last_line(started.log()) or '(none)'}"
                )
            time.sleep(POLL)

    # -- the server ----------------------------------------------------------------------------

    def _url(self, unit: str) -> Address:
        """Return the server's address in the unit."""
        url = self.purpose.url
        return socket_url(url, unit) if forwarded(url) else url

    def _command(self, unit: str) -> list[str]:
        target = forwarded(self.purpose.url)
        forward = ["-R", f"{socket_in_unit(unit)}:{target}"] if target else []
        return ["ssh", *OPTIONS.split(), *forward, "--", f"ssh://{self._host}"]

    # -- what becomes of them ------------------------------------------------------------------

    def survey(self, units: Collection[str]) -> dict[str, UnitReport]:
        return {unit: self._report(unit, self._units[unit]) for unit in units}

    def _report(self, unit_id: str, unit: UnitProcess) -> UnitReport:
        code = unit.process.poll()
        if code is None and not _is_started(unit.log(), unit_id):
            why = last_line(unit.log()).removeprefix("nbstreamq: ")
            return UnitReport(state="pending", why=why, log=unit.tail())
        if code is None:
            return UnitReport(state="running", log=unit.tail())
        why = explain(unit.log(), self._host, code) if code else ""
        return UnitReport(state="ended", why=why, log=unit.tail(), is_planned=not code)

    def stop(self, units: Collection[str], *, drain: bool) -> None:
        for unit in units:
            self._units[unit].end(drain=drain)

    def script(self, n_workers: int) -> str:
        command = shlex.join([*self._command("UNIT"), _READ_SCRIPT])
        return (
            f"# {command}\n# Its standard input has this script in one line, then the server's"
            " address and the secret, and stays\n# open as long as the workers are wanted.\n"
            + self._script("UNIT", n_workers)
        )

    def _script(self, unit: str, n_workers: int) -> str:
        # sshd leaves the socket behind; a unit that starts removes it at its end.
        tidy = f"trap 'rm -f {socket_in_unit(unit)}' EXIT"
        return self._setting.shell(unit, self.purpose, n_workers, tidy, "--lifeline")

    def close(self, *, is_fork: bool) -> None:
        if is_fork:
            for unit in self._units.values():
                unit.close()
            self._units = {}
            return
        living = [unit for unit in self._units.values() if unit.process.poll() is None]
        for unit in living:
            unit.end(drain=True)
        deadline = time.monotonic() + STOP_TIMEOUT
        for unit in living:
            with contextlib.suppress(subprocess.TimeoutExpired):
                unit.process.wait(max(0.0, deadline - time.monotonic()))
        for unit in self._units.values():
            unit.close()


def _is_started(log: str, unit: str) -> bool:
    return f"nbstreamq: unit {unit}" in log


def host_in(parameter: str, url: str) -> str:
    """Return user, host and port in a URL, as ssh takes them; ValueError if it is none of ssh."""
    parts = urlsplit(url)
    if parts.scheme != "ssh" or not parts.hostname or parts.password or url.count("/") > 2:
        raise ValueError(
            f"{parameter} is {hide_password(url)!r}: it must look like ssh://me@host or"
            " ssh://host:2222"
        )
    return parts.netloc


def explain(log: str, host: str, code: int = SSH_FAILED) -> str:
    """Return in a line why ssh, or what it ran, has failed, and what to do about it.

    Parameters
    ----------
    code
        The exit status of ssh.
    """
    for text, hint in _HINTS.items():
        if text in log:
            said = next(line for line in reversed(log.splitlines()) if text in line)
            return f"{said.strip().rstrip('.')}; {hint.format(host=host)}"
    line = last_line(log)
    if code == SSH_FAILED or line.startswith("nbstreamq: "):
        return line.removeprefix("nbstreamq: ") or "ssh ended without a word"
    said = "" if not line or _ROUTINE.search(line) else f": {line}"
    return f"it ended with status {code}{said}"


# -- the way to a server that only one machine reaches --------------------------------------------


def forwarded(url: Address) -> str:
    """Return what ssh forwards to, if only this machine can reach the server; else nothing."""
    parts = urlsplit(url.reveal())
    if not is_local(url) or parts.scheme not in ("unix", "redis", "valkey"):
        return ""
    if parts.scheme == "unix":
        return unquote(parts.path)
    place = parts.netloc.rpartition("@")[2] or "localhost"
    return place if place.rpartition(":")[2].isdigit() else f"{place}:6379"


def socket_url(url: Address, unit: str) -> Address:
    """Return the address that the server has for a unit, to which ssh forwards its socket."""
    parts = urlsplit(url.reveal())
    login = parts.netloc.rpartition("@")[0]
    database = "" if parts.scheme == "unix" else parts.path.strip("/")
    query = "&".join(filter(None, [parts.query, database and f"db={database}"]))
    place = f"{login}@{socket_in_unit(unit)}" if login else socket_in_unit(unit)
    return Address(f"unix://{place}" + (f"?{query}" if query else ""))


def is_forwarded(url: Address) -> bool:
    """Return whether a unit has this address for a server that another machine forwards."""
    return bool(_SOCKET.fullmatch(unquote(urlsplit(url.reveal()).path)))


def socket_in_unit(unit: str) -> str:
    """Return the path of the forwarded socket on the unit's machine."""
    return f"/tmp/nbstreamq-{unit}.sock"  # noqa: S108 - sshd lets only its user connect to it
