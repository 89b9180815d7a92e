"""What places workers on other machines: the protocol of launchers, and how they are found.

A launcher starts *units*. A unit is one ``nbstreamq worker``: a supervisor with its workers, which
starts and ends as a whole. The server knows which units live, since their workers are registered
there. A launcher explains the others: which still wait for a machine, and why one has ended.
"""

from __future__ import annotations

import secrets
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..arguments import shown
from ..home import PYTHON
from ..secret import Address, Secret
from ..settings import Settings
from ..tracebacks import warn
from ..wire.messages import VERSION
from .sync import sync_lines

if TYPE_CHECKING:
    from .tunnel import Tunnel

#: The group of entry points. The name of each is a URL's scheme, a word, or the top-level package
#: of an object: what `TaskQueue.run` gets as ``on``.
GROUP = "nbstreamq.launchers"
#: Lines of a log that are kept of each unit.
LOG_LINES = 20

State = Literal["pending", "running", "ended", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """What units are for: the queue whose calls they run, and how they get in.

    Attributes
    ----------
    url, queue, secret
        What their workers connect to. Other users must not see the url's password and the secret.
    session
        Id of the client that starts them.
    settings
        Of this process: where sockets and logs are.
    tunnel
        What leads to the server's machine; None: the server is here, or the url leads there.
    wear
        When workers are replaced: after how many calls, above how many bytes; 0: never.
    """

    url: Address
    queue: str
    secret: Secret
    session: str
    settings: Settings = field(repr=False)
    tunnel: Tunnel | None = None
    wear: tuple[int, int] = (0, 0)

    def worker_words(self, unit: str, n_workers: int, drain: float) -> list[str]:
        """Return the words behind the interpreter with which it becomes a unit."""
        words = ["-m", "nbstreamq", "worker", "--queue", self.queue, "-n", str(n_workers)]
        words += ["--unit", unit, "--drain", f"{drain:g}", "--secrets-on-stdin"]
        for name, most in zip(("--max-tasks-per-worker", "--max-memory"), self.wear, strict=True):
            words += [name, str(most)] if most else []
        return words


@dataclass(frozen=True, kw_only=True)
class UnitReport:
    """What a launcher knows of a unit.

    Attributes
    ----------
    state
        ``pending``: it waits for a machine. ``running``: it has one. ``ended``. ``unknown``: who
        knows did not answer; that is no reason to give the unit up.
    why
        Why it waits or has ended, in one line; empty if there is nothing to say.
    log
        The last lines that it has logged.
    is_planned
        Whether it has ended as it should: it was told to, or its time was over.
    """

    state: State
    why: str = ""
    log: str = ""
    is_planned: bool = False


class Launcher(ABC):
    """Starts units in one place, and tells what has become of them.

    Parameters
    ----------
    on
        The place, as `TaskQueue.run` got it.
    purpose
        What the units are for.

    Attributes
    ----------
    unit_size
        Workers of a unit at most; None: one unit has all.
    look_every
        Seconds between two surveys at least. One that asks a scheduler needs 10 or more.
    """

    unit_size: int | None = 1
    look_every = 10.0

    def __init__(self, on: Any, purpose: Purpose) -> None:
        self.on = on
        self.purpose = purpose

    @abstractmethod
    def start(self, sizes: Sequence[int]) -> list[str]:
        """Start units with so many workers each, and return their ids, which `new_id` makes.

        Each runs `Setting.shell`. Return when they are accepted; they may start later.

        Raises
        ------
        NbstreamqError
            They are refused, for a reason that one line tells.
        """

    def left_behind(self) -> dict[str, int]:
        """Return the units for this queue that an earlier client has started, and their sizes."""
        return {}

    @abstractmethod
    def survey(self, units: Collection[str]) -> dict[str, UnitReport]:
        """Return what is known of units, with one question for all of them, and a time limit."""

    @abstractmethod
    def stop(self, units: Collection[str], *, drain: bool) -> None:
        """End units.

        Parameters
        ----------
        drain
            Let running calls finish for a while, before they are given to other workers.
        """

    @abstractmethod
    def script(self, n_workers: int) -> str:
        """Return what a unit with so many workers would run; secrets are hidden."""

    @abstractmethod
    def close(self, *, is_fork: bool) -> None:
        """Let go of the units.

        Parameters
        ----------
        is_fork
            True: they belong to the process that this one was forked from, and go on. False: the
            session ends. They end with it, or when they have been idle for a while.
        """

    def __str__(self) -> str:
        return str(self.on)


def new_id() -> str:
    """Return the id of a new unit."""
    return secrets.token_hex(6)


def find_launcher(on: Any, purpose: Purpose, options: dict[str, Any]) -> Launcher:
    """Return the launcher for a place; `options` are its own.

    Raises
    ------
    ValueError, TypeError
        No launcher knows such a place, or it does not know the options.
    """
    from importlib.metadata import entry_points  # slow to import

    name = on.partition(":")[0] if isinstance(on, str) else type(on).__module__.partition(".")[0]
    known = {point.name: point for point in entry_points(group=GROUP)}
    if name not in known:
        raise ValueError(
            f"on is {shown(on)}: it must be ssh://me@host, or what another launcher takes:"
            f" {', '.join(sorted(known))}."
        )
    launcher: Launcher = known[name].load()(on, purpose, **options)
    return launcher


# -- what a unit runs ----------------------------------------------------------------------------

#: Prints why a Python can't run the unit; nothing if it can.
_CHECK = """
import sys
found = "%d.%d" % sys.version_info[:2]
if found != "{minor}":
    sys.exit("is Python " + found)
del sys.path[0]
try:
    from nbstreamq.wire.messages import VERSION
except ImportError as error:
    sys.exit("is Python " + found + " without nbstreamq: " + str(error))
if VERSION != "{version}":
    sys.exit("has nbstreamq " + VERSION)
"""
_FIND = """
why=
for python in {candidates}; do
  path=$(command -v "$python") || continue
  if said=$("$path" -c {check} 2>&1); then break; fi
  why="$why; $path $(echo "$said" | head -n 1)"
  path=
done
if [ -z "$path" ]; then
  echo "nbstreamq: $(uname -n) has no {wanted}${{why}}. Install it there, or say where it is:\
 python='/path/to/python'" >&2
  exit 3
fi
"""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and with what a unit runs, as the user says it.

    Attributes
    ----------
    python
        Path or name of the interpreter there. None: this one's path, or else a ``python3.11`` on
        PATH. It must have this one's minor version, unless its name says another, as ``python3.12``
        does; and this version of nbstreamq.
    folder
        Working folder, from which functions may import modules; None: the one in which the place
        starts commands.
    prologue
        Lines of the shell that run before.
    drain
        Seconds that running calls get when a unit is told to end.
    env
        ``"sync"``: uv gives it the packages of this Python, which it installs once for each
        machine. None: what is there.
    """

    python: str | None = None
    folder: str | None = None
    prologue: Sequence[str] = ()
    drain: float = 30.0
    env: str | None = None

    def __post_init__(self) -> None:
        if self.env and self.python:
            raise ValueError("python and env: an environment of env='sync' has a Python of its own")
        if isinstance(self.prologue, str):
            raise TypeError(f"prologue is {self.prologue!r}: it must be a list of lines")
        if (minor := _minor_in(self.python or "")) not in ("", PYTHON):
            warn(
                f"python is {self.python!r}: these workers run the calls of clients with Python"
                f" {minor}, and none of this one's, which has Python {PYTHON}."
            )

    def shell(self, unit: str, purpose: Purpose, n_workers: int, first: str, more: str) -> str:
        """Return the script that finds Python and becomes the unit, in the language of ``sh``.

        Parameters
        ----------
        first
            Its first line.
        more
            Further words of its command.
        """
        lines = [first, *self.prologue]
        if self.folder is not None:
            lines.append(f"cd {shlex.quote(self.folder)} || exit 3")
        find = sync_lines() if self.env else self.find_python()
        lines += [find, f'echo "nbstreamq: unit {unit} on $(uname -n), $path" >&2']
        # -P: a file such as queue.py in the home folder must not hide a module.
        words = ["-P"] if self.folder is None else []
        words += purpose.worker_words(unit, n_workers, self.drain)
        return "\n".join([*lines, f'exec "$path" {shlex.join(words)} {more}\n'])

    def find_python(self) -> str:
        """Return the part of a script that sets `path` to the interpreter, or fails."""
        given = self.python
        minor = _minor_in(given or "") or PYTHON
        check = _CHECK.format(minor=minor, version=VERSION)
        candidates = [given] if given else [sys.executable, f"python{PYTHON}", "python3", "python"]
        return _FIND.format(
            candidates=shlex.join(candidates),
            check=shlex.quote(check.strip()),
            wanted=f"Python {minor} with nbstreamq {VERSION}",
        ).strip()


def _minor_in(python: str) -> str:
    """Return the minor version that the name of an interpreter has; empty if it has none."""
    version = python.rpartition("/")[2].removeprefix("python")
    return version if version.count(".") == 1 and version.replace(".", "").isdigit() else ""


def last_line(log: str) -> str:
    """Return the last line of a log that says something."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else ""
