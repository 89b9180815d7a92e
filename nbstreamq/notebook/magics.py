"""The magics ``%workers``, ``%%task`` and so on: a queue without a line of Python."""

# IPython's decorators have no types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import itertools
import keyword
import re
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import argument, kwds, magic_arguments, parse_argstring

from ..arguments import shown
from ..client.everywhere import SetUp
from ..client.job import Job
from ..client.queue import TaskQueue
from ..client.status import JobList, WorkerList
from ..client.units import Units
from ..errors import JobNotFound, NbstreamqError
from .cells import Cell, CellFuture, CellOutput, Loop, WorkerOutputDisplay
from .outputs import Output
from .own_queue import NotebookQueue

#: Seconds that `%workers 4` waits for the workers to join or leave, and between two looks.
JOIN_SECONDS, JOIN_PAUSE = 5.0, 0.05
_NOT_A_QUEUE = (
    "it is of type {}, and the magics need a TaskQueue of that name. Rename your variable, or"
    " replace it with `%queue NAME`."
)

#: Where the options of ``%%pmap`` begin. The loop before them is Python, not an argument.
_OPTION = re.compile(r"(?:^|\s)(?=(?:-o|--output|--lane|--time-limit|--retries)(?:[\s=]|$))")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"it is {shown(text)}: it must be an integer") from None


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"it is {shown(text)}: it must be a number of seconds") from None


_lane = argument(
    "--lane",
    metavar="L",
    help="lane to submit to: high, default, low, or the name of your own; default: 'default'",
)
_time_limit = argument(
    "--time-limit", type=_seconds, metavar="S", help="seconds a call may take; default: no limit"
)
_job_name = argument(
    "-o", "--output", metavar="NAME", help="variable for the job; it is also in `_job`"
)


@magics_class
class NbstreamqMagics(Magics):
    """The magics of nbstreamq. They use the queue in the notebook's variable ``q``."""

    shell: Any  # it is never None, though IPython's types allow that

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self._numbers = itertools.count(1)
        #: What magics submitted and is not over.
        self._open: set[Job[Any] | Future[Any]] = set()

    # -- queues and workers --------------------------------------------------------------------

    def bind_queue(self) -> None:
        """Bind a queue to `q` unless there is something of that name, and say what `q` is."""
        found = self._variables.get("q")
        if found is None:
            with _usage_errors():
                self._bind("q", NotebookQueue())
            _write(self._variables["q"].introduce())
        elif isinstance(found, TaskQueue):
            _write(f"`q` stays as it is: {found!r}. The magics use it.")
        else:
            _write(f"`q` stays as it is: {_NOT_A_QUEUE.format(type(found).__name__)}")

    @magic_arguments()
    @argument("n", nargs="?", type=_integer, help="number of workers to run")
    @argument("--on", metavar="PLACE", help="where: slurm, or ssh://me@host; default: this machine")
    @argument("--env", choices=["sync"], help="sync: have uv install this Python's packages there")
    @argument("--lane", nargs="+", metavar="L", default=(), help="list the workers of these lanes")
    @line_magic
    def workers(self, line: str) -> WorkerList | Units | None:
        """Run `n` workers for the queue `q`. Without a number, list all workers.

        If there is no `q`, this makes one, as `%load_ext nbstreamq` does.

        Examples::

            %workers 4
            %workers 8 --on ssh://me@host
            %workers 8 --on slurm --env sync
            %workers
            %workers --lane gpu
        """
        args = parse_argstring(self.workers, line)
        if args.n is None:
            served = set(args.lane)
            found = self._queue().workers()
            serving = [w for w in found if not served or served & set(w.lanes)]
            return WorkerList(serving, found.awaited)
        if args.lane:
            raise UsageError(
                "Local workers serve the lanes high, default and low. For other lanes, run"
                f" `python -m nbstreamq worker URL --lane {args.lane[0]}` in a terminal."
            )
        with _usage_errors():
            queue = self._queue()
            if args.on:
                return queue.run(args.n, on=args.on, env=args.env)
            queue.run(args.n, env=args.env)
        until = time.monotonic() + JOIN_SECONDS
        while (n := queue._session.workers.n_local()) != args.n and time.monotonic() < until:
            time.sleep(JOIN_PAUSE)
        of_all = "" if n == args.n else f" of {args.n}"
        _write(f"{n}{of_all} local {'worker is' if n == 1 else 'workers are'} running.")
        return None

    @magic_arguments()
    @argument("name", help="name of the queue")
    @argument("--url", help="address of its server; default: $NBSTREAMQ_URL, else the embedded one")
    @line_magic
    def queue(self, line: str) -> TaskQueue:
        """Use another queue. It becomes `q`; the old `q` accepts no further calls.

        Examples::

            %queue sims
            %queue sims --url redis://localhost:6379
        """
        args = parse_argstring(self.queue, line)
        with _usage_errors():
            queue = TaskQueue(args.name, args.url)
        previous = self._variables.get("q")
        self._bind("q", queue)
        if isinstance(previous, TaskQueue) and not isinstance(previous, NotebookQueue):
            previous.shutdown(wait=False)
        return queue

    # -- cells ---------------------------------------------------------------------------------

    @magic_arguments("%task")
    @argument("-o", "--output", metavar="A,B", help="variables to bring back when it is done")
    @argument("-i", "--input", metavar="X,Y", help="variables to send that the code does not name")
    @argument("--name", metavar="N", help="variable for the future; it is also in `_task`")
    @_lane
    @_time_limit
    @cell_magic
    def task(self, line: str, cell: str) -> None:
        """Run the cell on a worker, in the background.

        The worker gets the notebook's variables and functions that the cell uses. What the cell
        prints appears at once, its last value and its figures when it is done. `_task.result()`
        waits for it.

        Example::

            %%task -o total
            total = sum(range(10**7))
        """
        args = parse_argstring(self.task, line)
        inputs, wanted = _names(args.input, "-i"), _names(args.output, "-o")
        names = [*_names(args.name, "--name"), "_task"]
        title = f"task {next(self._numbers)}"
        code = Cell.read(self.shell, "task", line, cell)
        fn = code.task(title, inputs, wanted)
        with _usage_errors():
            queue = self._queue().options(lane=args.lane, time_limit=args.time_limit)
        future = CellFuture.of(queue.submit(fn), self._variables.update)
        for name in names:
            self._bind(name, future)
        self._follow(future)
        CellOutput(Output(), title, code.filename).follow(future)

    @cell_magic
    def everywhere(self, line: str, cell: str) -> None:
        """Run the cell once on every worker, and on each worker that joins later.

        Use it for imports, settings and warm caches. Later `%%task` cells see what it defines.
        What it prints appears below the cell, worker by worker.

        Example::

            %%everywhere
            import numpy as np
            table = np.arange(10**6)
        """
        if line.strip():
            raise UsageError("%%everywhere takes no arguments")
        fn = Cell.read(self.shell, "everywhere", line, cell).everywhere()
        printed = WorkerOutputDisplay()
        set_up = SetUp(self._queue()._session, fn, (), {}, lane="default")
        job = set_up.send(show=printed.add)
        self._follow(job)
        job.wait()
        printed.show(future.worker or "" for future in job[:])
        for error in job.errors.values():
            raise error

    @magic_arguments("%pmap")
    @kwds(usage="%%pmap loop [-o NAME] [--lane L] [--time-limit S] [--retries N]")
    @argument("loop", nargs="*", help="`x in xs`, or `i, x in enumerate(xs)`; before all options")
    @_job_name
    @_lane
    @_time_limit
    @argument(
        "--retries", type=_integer, metavar="N", help="how often an item that raises is run again"
    )
    @cell_magic
    def pmap(self, line: str, cell: str) -> Job[Any]:
        """Run the cell for each item of a loop, on the workers.

        The value of its last expression is the item's result, and `_job.result()` waits for all
        of them, in order. Workers get the notebook's variables and functions that the cell uses.
        What the cell assigns stays on the worker.

        Example::

            %%pmap x in range(10) -o squares
            x ** 2
        """
        found = _OPTION.search(line)
        head, tail = (line[: found.start()], line[found.end() :]) if found else (line, "")
        args = parse_argstring(self.pmap, tail)
        names = [*_names(args.output, "-o"), "_job"]
        loop = Loop.read(head.strip() or " ".join(args.loop))
        fn = Cell.read(self.shell, "pmap", line, cell).loop(loop, "pmap")
        with _usage_errors():
            queue = self._queue().options(
                lane=args.lane, time_limit=args.time_limit, retries=args.retries
            )
        job = queue.map(fn, self.shell.ev(loop.items))
        for name in names:
            self._bind(name, job)
        self._follow(job)
        return job

    # -- jobs ----------------------------------------------------------------------------------

    @line_magic
    def jobs(self, line: str) -> JobList | None:
        """List what magics submitted and is not over, and the named jobs of `q`.

        Example::

            %jobs
        """
        if line.strip():
            raise UsageError("%jobs takes no arguments")
        names = {id(v): k for k, v in self._variables.items() if not k.startswith("_")}
        for it in list(self._open):
            _write(f"{names.get(id(it), '-')}  {it!r}")
        queue = self._variables.get("q")
        if isinstance(queue, TaskQueue):
            _write(f"open jobs of this kernel on {queue.name!r}: {queue.status().open_jobs}")
            return queue.jobs()
        return None

    @magic_arguments()
    @argument("name", help="name of the job")
    @_job_name
    @line_magic
    def attach(self, line: str) -> Job[Any]:
        """Show a named job of `q`, from any kernel: `q.map(f, xs, name="sweep")`.

        `%jobs` lists them. To attach from another notebook, use a queue with a name in both:
        `%queue ours`. A queue without a name belongs to its notebook.

        Example::

            %attach sweep -o job
        """
        args = parse_argstring(self.attach, line)
        with _usage_errors():
            job = self._queue().attach(args.name)
        for name in [*_names(args.output, "-o"), "_job"]:
            self._bind(name, job)
        self._follow(job)
        return job

    @magic_arguments()
    @argument("name", nargs="?", help="variable that holds a job or future; default: all")
    @line_magic
    def cancel(self, line: str) -> None:
        """Cancel the job or future in a variable. Without one, cancel all that magics submitted.

        Examples::

            %cancel squares
            %cancel
        """
        name = parse_argstring(self.cancel, line).name
        chosen = list(self._open) if name is None else [self._variables.get(name)]
        for it in chosen:
            if not isinstance(it, Job | Future):
                raise UsageError(
                    f"No variable {name!r} holds a job or future. To cancel a named job, run"
                    f" `q.attach({name!r}).cancel()`."
                )
            it.cancel()

    # -- inside --------------------------------------------------------------------------------

    @property
    def _variables(self) -> dict[str, Any]:
        """The notebook's variables."""
        variables: dict[str, Any] = self.shell.user_ns
        return variables

    def _bind(self, name: str, value: Any) -> None:
        self.shell.push({name: value})

    def _queue(self) -> TaskQueue:
        """Return the queue `q`; bind one if there is none."""
        queue = self._variables.get("q")
        if queue is None:
            queue = NotebookQueue()
            self._bind("q", queue)
        if not isinstance(queue, TaskQueue):
            raise UsageError(f"`q` can't be used: {_NOT_A_QUEUE.format(type(queue).__name__)}")
        return queue

    def _follow(self, it: Job[Any] | Future[Any]) -> None:
        """Remember a job or future until it is over."""
        if isinstance(it, Job):  # one that was attached before is another object
            same = {one for one in self._open if isinstance(one, Job) and one.id == it.id}
            self._open.difference_update(same)
        self._open.add(it)
        it.add_done_callback(self._open.discard)


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Show the error of a wrong argument as a line without a traceback."""
    try:
        yield
    except (TypeError, ValueError, JobNotFound) as error:
        raise UsageError(str(error)) from None


def _names(text: str | None, option: str) -> list[str]:
    """Return the variables in ``a,b``; UsageError if one has no possible name."""
    names = [part.strip() for part in text.split(",")] if text else []
    for name in names:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise UsageError(f"{option} {text}: {name!r} can't be the name of a variable")
    return names


def _write(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")


# -- completion ---------------------------------------------------------------------------------

_COMPLETED = ("%attach", "%cancel", "%queue", "%workers", "%%pmap", "%%task")


def complete_magics(shell: Any) -> None:
    """Have `shell` complete the arguments of magics."""
    for magic in _COMPLETED:
        shell.set_hook("complete_command", _completer(magic), str_key=magic)


def _completer(magic: str) -> Callable[[Any, Any], list[str]]:
    def complete(shell: Any, event: Any) -> list[str]:
        kind = "cell" if magic.startswith("%%") else "line"
        parser = shell.magics_manager.magics[kind][magic.lstrip("%")].parser
        options = [o for action in parser._actions for o in action.option_strings]  # noqa: SLF001
        found = [*options, *_values(magic, shell.user_ns)]
        return sorted(text for text in found if text.startswith(event.symbol))

    return complete


def _values(magic: str, variables: dict[str, Any]) -> Iterable[str]:
    """Return the arguments that a magic may have, other than options."""
    if magic == "%cancel":
        return [k for k, v in variables.items() if isinstance(v, Job | Future) and k[0] != "_"]
    queue = variables.get("q")
    if magic == "%attach" and isinstance(queue, TaskQueue):
        try:
            return [job.name for job in queue.jobs()]
        except NbstreamqError:  # without an answer, there is nothing to complete
            return []
    return []
