"""Workers as jobs of Slurm, by its commands: sbatch, squeue, scancel.

::

    Units ── sh ──> sbatch ──> slurmctld ──> a compute node: sh ──exec──> nbstreamq worker
                                                  │ ssh -L, if the server has only a socket
    the server <───────────────────────────────────┘

Each unit is a job of its own, so that small ones start as soon as there is room. A lost job is not
requeued, which takes Slurm two minutes: `Units` submits another one.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..arguments import read_seconds
from ..errors import NbstreamqError
from ..secret import Address, Secret
from ..settings import environment_without_secrets, handover
from .launcher import LOG_LINES, Launcher, Purpose, Setting, State, UnitReport, last_line, new_id
from .ssh import OPTIONS, forwarded, socket_in_unit, socket_url

#: Seconds that Slurm's commands may take. A controller that hangs must hold up nobody for long.
TIMEOUT = 15.0
#: Seconds before the wall time at which Slurm tells a unit to end, at least.
WARNING = 60
#: Seconds of rest that a unit leaves between its last call and the wall time.
MARGIN = 30.0
#: Days for which what units have logged is kept.
LOG_DAYS = 7
_STATES: dict[str, State] = {"PENDING": "pending", "REQUEUED": "pending", "CONFIGURING": "pending"}
_LIVING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}
#: Ends that are no failure of the unit.
_PLANNED = {"COMPLETED", "TIMEOUT", "PREEMPTED"}
#: Where jobs find their secrets, and write what they log: a folder that all machines share.
_FOLDER = (
    'd="${NBSTREAMQ_DATA_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/nbstreamq}/units";'
    f' umask 077; mkdir -p "$d" && find "$d" -type f -mtime +{LOG_DAYS} -delete; echo "$d"'
)
#: Submits the script in its input, and prints the job; or takes back all of them.
_SUBMIT = """umask 077
jobs=
submit() {{
  job=$(sbatch --parsable) && job=${{job%%;*}} && jobs="$jobs $job" && echo "job $job" && return
  rm -f {secrets}
  [ -z "$jobs" ] || scancel $jobs
  exit 1
}}"""
_LIVING_JOBS = 'squeue --me --noheader --states=PENDING,RUNNING --format="%i %j"'
#: Shows the state of all jobs, and the ends of logs.
_SURVEY = (
    'squeue --me --noheader --states=all --format="%i %T %r" || exit 1\n'
    "for log in {logs}; do echo; echo \"== $log\"; tail -n {lines} \"$log\" 2>/dev/null; done; :"
)  # fmt: skip


class SlurmLauncher(Launcher):
    """Submits a job for each unit.

    Parameters
    ----------
    on
        ``slurm``.
    partition
        Where jobs are submitted; None: Slurm's default.
    walltime
        How long a job runs at most, in seconds or as text such as ``"1h30m"``. Workers start no
        call that would take longer than what is left. None: the limit of the partition.
    directives
        Further options of sbatch, such as ``["--gres=gpu:1", "--mem=8G"]``.
    workers_per_job
        Small jobs start sooner.
    idle_timeout
        Seconds without a call after which a job ends.
    folder, **setting
        Of a `Setting`; the folder is this process's own if None is given.
    """

    def __init__(
        self,
        on: str,
        purpose: Purpose,
        *,
        partition: str | None = None,
        walltime: float | str | None = None,
        directives: Sequence[str] = (),
        workers_per_job: int = 1,
        idle_timeout: float | str = 300.0,
        folder: str | None = None,
        **setting: Any,
    ) -> None:
        super().__init__(on, purpose)
        self.unit_size = workers_per_job
        self._partition = partition
        self._walltime = None if walltime is None else read_seconds("walltime", str(walltime))
        self._idle_timeout = read_seconds("idle_timeout", str(idle_timeout))
        self._directives = [*directives]
        self._folder = folder or (None if purpose.tunnel else str(Path.cwd()))
        self._setting = Setting(folder=self._folder, **setting)
        # A later session finds its jobs by this name, whichever way it reaches the server.
        server = purpose.tunnel.target if purpose.tunnel else forwarded(purpose.url)
        place = f"{server or purpose.url}\0{purpose.queue}"
        self._name = f"nbstreamq-{hashlib.blake2b(place.encode(), digest_size=4).hexdigest()}"
        #: Unit -> job; and the folder of secrets and logs, once it is known.
        self._jobs: dict[str, str] = {}
        self._files = ""

    def left_behind(self) -> dict[str, int]:
        found = {}
        for line in self._run(_LIVING_JOBS).splitlines():
            job, _, name = line.partition(" ")
            ours, _, rest = name.rpartition("-")[0].rpartition("-")
            if ours == self._name and rest.isdigit():
                unit = name.rpartition("-")[2]
                self._jobs[unit], found[unit] = job, int(rest)
        return found

    # -- submitting ----------------------------------------------------------------------------

    def start(self, sizes: Sequence[int]) -> list[str]:
        self._find_folder()
        units = [new_id() for _ in sizes]
        secrets = shlex.join(self._file(unit, "secrets") for unit in units)
        words = [_SUBMIT.format(secrets=secrets), *map(self._submission, units, sizes)]
        said = self._run("\n".join(words)).splitlines()  # the user's shell may say more
        jobs = [line.removeprefix("job ") for line in said if line.startswith("job ")]
        self._jobs |= zip(units, jobs, strict=True)
        return units

    def _find_folder(self) -> None:
        self._files = self._files or last_line(self._run(_FOLDER))

    def _submission(self, unit: str, n_workers: int) -> str:
        """Return the part of a script that writes the secrets of a unit, and submits it."""
        known: dict[str, Secret | None] = {
            "url": self._url(unit),
            "secret": self.purpose.secret,
            "store": self.purpose.settings.store,
            "socket": Secret(socket_in_unit(unit)) if self._target() else None,
        }
        file = shlex.quote(self._file(unit, "secrets"))
        return (
            f"cat > {file} <<'END OF SECRETS'\n{handover(**known).decode()}END OF SECRETS\n"
            f"submit <<'END OF SCRIPT'\n{self._script(unit, n_workers)}END OF SCRIPT"
        )

    def _file(self, unit: str, kind: str) -> str:
        return f"{self._files}/{unit}.{kind}"

    def _script(self, unit: str, n_workers: int) -> str:
        secrets = shlex.quote(self._file(unit, "secrets"))
        # The file is gone before anything of the user runs.
        first = f"exec 3< {secrets} && rm -f {secrets} || exit 3"
        return "\n".join(
            [
                "#!/bin/sh",
                *(f"#SBATCH {line}" for line in self._options(unit, n_workers)),
                *self._forward(unit),
                self._setting.shell(
                    unit, self.purpose, n_workers, first, f"{self._life()} <&3 3<&-"
                ),
            ]
        )

    def _options(self, unit: str, n_workers: int) -> list[str]:
        found = [
            f"--job-name={self._name}-{n_workers}-{unit}",
            f"--output={self._file(unit, 'log')}",
            "--ntasks=1",
            f"--cpus-per-task={n_workers}",
            "--no-requeue",
            # Not USR1 or USR2, which belong to tasks.
            f"--signal=B:TERM@{max(WARNING, round(self._setting.drain + MARGIN))}",
        ]
        if self._folder:
            found.append(f"--chdir={self._folder}")
        if self._partition:
            found.append(f"--partition={self._partition}")
        if self._walltime is not None:
            minutes, seconds = divmod(max(1, round(self._walltime)), 60)
            found.append(f"--time={minutes}:{seconds:02}")
        return found + self._directives

    def _life(self) -> str:
        """Return the options that end a unit in time."""
        life = f"--idle-timeout {self._idle_timeout:g}"
        if self._walltime is not None:
            rest = min(self._setting.drain + MARGIN, self._walltime / 2)
            life += f" --lifetime {self._walltime - rest:g}"
        return life

    # -- the server ----------------------------------------------------------------------------

    def _target(self) -> str:
        tunnel = self.purpose.tunnel
        return tunnel.target if tunnel else forwarded(self.purpose.url)

    def _url(self, unit: str) -> Address:
        return socket_url(self.purpose.url, unit) if self._target() else self.purpose.url

    def _forward(self, unit: str) -> list[str]:
        """Return lines that lead the node to a server which only the submitting machine reaches."""
        if not (target := self._target()):
            return []
        path, pipe = socket_in_unit(unit), socket_in_unit(unit) + ".pipe"
        ssh = f"ssh {OPTIONS} -o StreamLocalBindUnlink=yes -L {shlex.quote(f'{path}:{target}')}"
        # $$ becomes the unit. Its end closes the pipe, and so ends `cat`, and ssh.
        go_on = f'kill -0 $$ && ! {ssh} -- "$SLURM_SUBMIT_HOST" exec cat'
        return [
            f"mkfifo -m 600 {pipe} || exit 3",
            # Slurm sends TERM to all processes, and the unit needs the way to hand its calls back.
            f"(trap '' TERM; exec < {pipe}; while {go_on}; do sleep 5; done) &",
            f"exec 4> {pipe}; rm -f {pipe}",
            f"for _ in $(seq 150); do [ -S {path} ] && break; sleep 0.1; done",
        ]

    # -- what becomes of them ------------------------------------------------------------------

    def survey(self, units: Collection[str]) -> dict[str, UnitReport]:
        try:
            self._find_folder()
            logs = shlex.join(self._file(unit, "log") for unit in units)
            found = self._run(_SURVEY.format(logs=logs, lines=LOG_LINES))
        except NbstreamqError as error:
            return dict.fromkeys(units, UnitReport(state="unknown", why=str(error)))
        jobs, *ends = ("\n" + found).split("\n== ")
        states = {job: (state, why) for job, state, why in map(_fields, jobs.split("\n"))}
        tails = dict(end.partition("\n")[::2] for end in ends)
        return {
            unit: _report(
                *states.get(self._jobs[unit], ("", "")), tails.get(self._file(unit, "log"), "")
            )
            for unit in units
        }

    def stop(self, units: Collection[str], *, drain: bool) -> None:
        self._find_folder()
        jobs = shlex.join(self._jobs[unit] for unit in units)
        secrets = shlex.join(self._file(unit, "secrets") for unit in units)
        how = f"--state=PENDING {jobs}; scancel --signal=TERM --batch" if drain else ""
        self._run(f"scancel {how} {jobs}; rm -f {secrets}")

    def script(self, n_workers: int) -> str:
        self._find_folder()
        return self._script("UNIT", n_workers)

    def close(self, *, is_fork: bool) -> None:
        """Leave the jobs to themselves: they go on, and end when they have been idle."""

    def _run(self, script: str) -> str:
        """Return what a script writes on the machine from which jobs are submitted.

        It is read from the standard input, so no list of processes shows it.

        Raises
        ------
        NbstreamqError
            It failed, or took too long.
        """
        tunnel = self.purpose.tunnel
        try:
            done = subprocess.run(  # noqa: S603 - ours
                [*tunnel.command, "exec sh -s"] if tunnel else ["sh", "-s"],
                input=script.encode(),
                capture_output=True,
                timeout=TIMEOUT,
                check=False,
                env=environment_without_secrets(),  # sbatch passes it on
            )
        except subprocess.TimeoutExpired:
            raise NbstreamqError(f"Slurm: no answer for {TIMEOUT:g} s") from None
        if done.returncode:
            said = last_line(done.stderr.decode(errors="replace"))
            raise NbstreamqError(f"Slurm: {said or 'a command failed'}")
        return done.stdout.decode(errors="replace").strip()


def _fields(line: str) -> tuple[str, str, str]:
    job, _, rest = line.strip().partition(" ")
    state, _, why = rest.partition(" ")
    return job, state, why


def _report(state: str, reason: str, log: str) -> UnitReport:
    log = log.strip()
    if state in _STATES:
        return UnitReport(state="pending", why="" if reason == "None" else reason)
    if state in _LIVING:
        return UnitReport(state="running", log=log)
    if state in _PLANNED:
        why = "" if state == "COMPLETED" else f"Slurm says {state}"
        return UnitReport(state="ended", why=why, log=log, is_planned=True)
    said = last_line(log).removeprefix("nbstreamq: ")
    if not state:  # Slurm forgets jobs some minutes after their end
        why = "Slurm no longer knows the job" + (f"; {said}" if said else "")
        return UnitReport(state="ended", why=why, log=log)
    return UnitReport(state="ended", why=f"Slurm says {state}; {said}" if said else state, log=log)
