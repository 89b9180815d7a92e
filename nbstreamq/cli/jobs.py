"""`nbstreamq jobs`: named jobs, which the server keeps for every client."""

from __future__ import annotations

import argparse
import functools
import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import check_job_name
from ..errors import NbstreamqError
from ..sizes import duration, in_units
from .parsing import Commands, Parser, add_command, add_json, add_queue, add_server, argument
from .printing import advise, console, print_json, print_rows, table
from .target import open_job, open_queues

if TYPE_CHECKING:
    from ..client.job import Job

COLUMNS = {
    "job": lambda job: job.name,
    "queue": lambda job: job.queue,
    "state": lambda job: job.state,
    "done": lambda job: f"{job.done:,}/{job.submitted:,}",
    "failed": lambda job: job.failed,
    "cancelled": lambda job: job.cancelled,
    "function": lambda job: job.function,
    "made": lambda job: f"{duration(max(0.0, time.time() - job.made))} ago",
    "kept for": lambda job: "ever" if job.expires is None else duration(job.expires),
    "size": lambda job: "-" if job.size_bytes is None else in_units(job.size_bytes),
}
ERRORS = {
    "item": lambda row: row["item"],
    "error": lambda row: row["error"],
}
#: Most errors that `show` prints.
N_ERRORS = 10


def add_jobs(commands: Commands) -> None:
    """Add the command to the parser."""
    does = "list named jobs, look at one, change it, or save its results"
    jobs = add_command(commands, "jobs", does, "nbstreamq jobs list")
    verbs = jobs.add_subparsers(required=True, metavar="VERB")
    listing = add_command(
        verbs, "list", "list the named jobs, newest first", "nbstreamq jobs list", _list_jobs
    )
    add_json(listing)
    _add_target(listing)
    add_json(_add_verb(verbs, "show", "show a job and what failed in it", _show))
    _add_verb(verbs, "cancel", "cancel all calls of a job that are not over", _cancel)
    _add_verb(verbs, "retry", "run the failed calls of a job again", _retry)
    _add_verb(verbs, "delete", "delete a job and its results; cancel what is open", _delete)
    results = _add_verb(verbs, "results", "write the results of a job to a file", _save)
    results.add_argument(
        "-o",
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="the file; its suffix says how: .json, .pickle, or .csv and .parquet (with pandas)",
    )
    results.add_argument("--wait", action="store_true", help="wait until all calls are over")


def _add_verb(
    verbs: Commands, name: str, does: str, run: Callable[[argparse.Namespace], None]
) -> Parser:
    example = f"nbstreamq jobs {name} sweep" + (" -o sweep.json" if name == "results" else "")
    verb = add_command(verbs, name, does, example, run)
    check = argument(functools.partial(check_job_name, "NAME"))
    verb.add_argument("name", type=check, metavar="NAME", help="name of the job")
    _add_target(verb)
    return verb


def _add_target(command: Parser) -> None:
    add_server(command)
    add_queue(command, default=None)


def _list_jobs(options: argparse.Namespace) -> None:
    from ..client.status import jobs_of

    with open_queues(options) as stores:
        found = jobs_of(stores)
    print_rows(
        options,
        [{**vars(job), "state": job.state} for job in found] if options.json else found,
        COLUMNS,
        empty="There are no named jobs. q.map(function, items, name='sweep') makes one.",
        then="`nbstreamq jobs show NAME` shows what failed; `jobs results NAME -o FILE` saves it.",
    )


def _show(options: argparse.Namespace) -> None:
    from ..client.error_notes import error_text

    with open_job(options) as (queue, job):
        (about,) = (found for found in queue.jobs() if found.name == options.name)
        errors = [{"item": i, "error": error_text(e)} for i, e in job.errors.items()]
        rest = str(job.estimate()) if about.state == "open" and about.done else ""
    if options.json:
        print_json({**vars(about), "state": about.state, "errors": errors})
        return
    out = console()
    out.print(table([about], COLUMNS))
    if errors:
        out.print()
        out.print(table(errors[:N_ERRORS], ERRORS))
    if len(errors) > N_ERRORS:
        out.print(f"and {len(errors) - N_ERRORS:,} more errors: --json prints all")
    if rest:
        out.print(f"\nTo do: {rest}")
    advise(_after(about.state, about.name))


def _after(state: str, name: str) -> str:
    if state == "open":
        return f"`nbstreamq jobs cancel {name}` cancels the rest; `nbstreamq top` shows workers."
    if state == "failed":
        return f"`nbstreamq jobs retry {name}` runs the failed calls again."
    return f"`nbstreamq jobs results {name} -o {name}.json` saves the results."


def _cancel(options: argparse.Namespace) -> None:
    with open_job(options) as (_, job):
        before = _count(job, "cancelled")
        job.cancel()
        n = _count(job, "cancelled") - before
    print(f"Cancelled of job {options.name!r}: {_calls(n)}.")
    advise("the same q.map(...) runs them again, if it is wanted.")


def _retry(options: argparse.Namespace) -> None:
    with open_job(options) as (queue, job):
        n = _count(job, "failed")
        if n:
            job.retry_failed()
        has_workers = bool(queue.workers())
    print(f"Run again of job {options.name!r}: {_calls(n)}.")
    if has_workers or not n:
        advise(f"`nbstreamq jobs show {options.name}` shows how far they are.")
    else:
        advise(f"`nbstreamq worker --queue {queue.name}` starts workers; there are none.")


def _delete(options: argparse.Namespace) -> None:
    with open_job(options) as (_, job):
        job.delete()
    print(f"Deleted job {options.name!r} and its results.")
    advise("`nbstreamq jobs list` shows those that are left.")


def _count(job: Job[Any], state: str) -> int:
    from ..wire.messages import State

    return job.counts()[State(state)]


def _calls(n: int) -> str:
    return f"{n:,} call{'' if n == 1 else 's'}"


# -- results ------------------------------------------------------------------------------------


def _save(options: argparse.Namespace) -> None:
    path = options.output
    if (write := _WRITERS.get(path.suffix)) is None:
        known = ", ".join(_WRITERS)
        raise ValueError(f"--output is {str(path)!r}: its suffix must be one of {known}")
    with open_job(options) as (_, job):
        if options.wait:
            job.wait()
        if not job.done():
            raise NbstreamqError(f"job {options.name!r} is not over. Add --wait to wait for it.")
        write(job, path)
        n_bad = len(job) - _count(job, "done")
    print(f"Wrote {path}: {_calls(len(job))}, {n_bad:,} of them without a result.")
    if n_bad:
        advise(f"`nbstreamq jobs show {options.name}` shows why.")


def _write_json(job: Job[Any], path: Path) -> None:
    from ..client.error_notes import error_text

    rows = []
    for i, value in enumerate(job.result(errors="return")):
        is_done = not job[i].cancelled() and job[i].exception() is None
        error = None if is_done else error_text(value)
        rows.append({"item": i, "value": value if is_done else None, "error": error})
    path.write_text(json.dumps(rows, default=_as_json), encoding="utf-8")


def _as_json(value: Any) -> Any:
    """Return a value as JSON can hold it: NumPy's scalars and arrays as numbers and lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise NbstreamqError(
        f"JSON can't hold a result that has a {type(value).__name__}: use a file with the suffix"
        " .pickle."
    )


def _write_pickle(job: Job[Any], path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump(job.result(errors="return"), file)


_WRITERS: dict[str, Callable[[Job[Any], Path], None]] = {
    ".json": _write_json,
    ".pickle": _write_pickle,
    ".csv": lambda job, path: job.to_frame().to_csv(path, index=False),
    ".parquet": lambda job, path: job.to_frame().to_parquet(path),
}
