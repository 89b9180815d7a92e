"""``%workers``, ``%%task`` and the like: a queue without a line of Python."""

from __future__ import annotations

import itertools
import keyword
import os
import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from IPython import get_ipython
from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import argument, kwds, magic_arguments, parse_argstring
from IPython.display import DisplayHandle

from ..arguments import shown
from ..client.everywhere import everywhere
from ..client.job import Job
from ..client.queue import TaskQueue
from ..client.status import JobList, WorkerList
from ..client.waiting import handler_after
from ..errors import JobNotFound, NbstreamqError
from ..home import in_kernel
from ..tracebacks import on_shortened, without_last_frames
from .cells import Cell, CellFuture, Loop, OutputPlace, WorkerOutputDisplay

_MAGICS = ("%attach", "%cancel", "%queue", "%workers", "%%pmap", "%%task")


def complete_magics(shell: Any) -> None:
    """Have `shell` complete what follows a magic's name."""
    for magic in _MAGICS:
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
    """Return what may stand behind a magic, beside options."""
    if magic == "%cancel":
        return [k for k, v in variables.items() if isinstance(v, Job | Future) and k[0] != "_"]
    queue = variables.get("q")
    if magic == "%attach" and isinstance(queue, TaskQueue):
        try:
            return [job.name for job in queue.jobs()]
        except NbstreamqError:  # no answer is no reason to disturb who is typing
            return []
    return []


def hide_our_frames(shell: Any) -> None:
    """Have `shell` end the tracebacks of shortened errors at the user's own code.

    IPython leaves out frames that ask for it, except the last one, which is ours.
    """

    def render() -> list[str]:
        # Not a variable of this function: it would keep the error and its frames alive.
        kind, error, traceback = sys.exc_info()
        shown = without_last_frames(traceback) or traceback
        lines: list[str] = shell.InteractiveTB.structured_traceback(kind, error, shown, tb_offset=1)
        return lines

    def adapt(error: BaseException) -> None:
        # IPython's name of the method by which an error shows itself.
        error._render_traceback_ = render  # type: ignore[attr-defined]

    on_shortened(adapt)


def listen_when_idle(shell: Any) -> None:
    """Have interrupts noticed for a while after a cell in which a wait was interrupted."""
    if hasattr(shell, "kernel"):
        shell.events.register("post_run_cell", _keep_listening)


def _keep_listening(*_: object) -> None:
    """Replace the handler of SIGINT that ipykernel puts back after a cell, to ignore it."""
    kernel = get_ipython().kernel
    if hasattr(kernel, "saved_sigint_handler"):
        kernel.saved_sigint_handler = handler_after(kernel.saved_sigint_handler)


#: Where VS Code, in the notebook's variables, and Jupyter, in the environment, write the path.
_VSCODE, _JUPYTER = "__vsc_ipynb_file__", "JPY_SESSION_NAME"


def tell_notebook(shell: Any) -> None:
    """Have queues without a name belong to the notebook of `shell`, if it is a kernel's."""
    if hasattr(shell, "kernel"):
        in_kernel(lambda: shell.user_ns.get(_VSCODE) or _path_from_jupyter())


def _path_from_jupyter() -> str:
    """Return what Jupyter has told this kernel; empty if it has told another one.

    A kernel that a notebook starts, with papermill for instance, inherits its environment.
    """
    path = os.environ.get(_JUPYTER, "")
    launcher = os.environ.get("JPY_PARENT_PID", "")
    try:
        inherited = Path("/proc", launcher, "environ").read_bytes().split(b"\0")
    except OSError:  # not on Linux, or it has ended
        inherited = []
    return "" if os.fsencode(f"{_JUPYTER}={path}") in inherited else path


# IPython's decorators have no types.
# mypy: disable-error-code="untyped-decorator"


#: Where the options of ``%%pmap`` begin: the loop before them is no argument, but Python.
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
    help="lane to submit to: high, default, low, or a tag; default: 'default'",
)
_time_limit = argument(
    "--time-limit",
    type=_seconds,
    metavar="S",
    help="seconds that a call may take; default: no limit",
)


@magics_class
class NbstreamqMagics(Magics):
    """The magics of nbstreamq; they work with the queue that is called ``q`` in the notebook."""

    shell: Any  # it is never None, as IPython's types have it

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self._numbers = itertools.count(1)
        #: What magics submitted and is not over.
        self._open: set[Job[Any] | Future[Any]] = set()

    # -- queues and workers --------------------------------------------------------------------

    @magic_arguments()
    @argument("n", nargs="?", type=_integer, help="number of local workers to run")
    @argument("--lane", nargs="+", metavar="L", default=(), help="show the workers of these lanes")
    @line_magic
    def workers(self, line: str) -> WorkerList | None:
        """Start or stop local workers of the queue `q`; without a number, show its workers.

        Without a queue `q`, one is made: `TaskQueue()`.
        """
        args = parse_argstring(self.workers, line)
        if args.n is None:
            served = set(args.lane)
            found = self._queue().workers()
            return WorkerList(w for w in found if not served or served & set(w.lanes))
        if args.lane:
            raise UsageError(
                "Local workers serve all lanes but the tags; for others, run `python -m nbstreamq"
                f" worker URL --lane {args.lane[0]}` in a terminal"
            )
        with _usage_errors():
            self._queue().run(args.n)
        return None

    @magic_arguments()
    @argument("name", help="name of the queue")
    @argument("--url", help="address of its server; default: $NBSTREAMQ_URL, else the embedded one")
    @line_magic
    def queue(self, line: str) -> TaskQueue:
        """Use another queue: it is called `q` from now on, and the old `q` takes no more calls."""
        args = parse_argstring(self.queue, line)
        with _usage_errors():
            queue = TaskQueue(args.name, args.url)
        previous = self._variables.get("q")
        self._bind("q", queue)
        if isinstance(previous, TaskQueue):
            previous.shutdown(wait=False)
        return queue

    # -- cells ---------------------------------------------------------------------------------

    @magic_arguments("%task")
    @argument("-o", "--output", metavar="A,B", help="variables to bring back when it is done")
    @argument("-i", "--input", metavar="X,Y", help="variables to send that the code does not name")
    @argument("--name", metavar="N", help="variable for the future; it is always in `_task`")
    @_lane
    @_time_limit
    @cell_magic
    def task(self, line: str, cell: str) -> None:
        """Run the cell on a worker, in the background.

        The notebook's variables and functions that it uses are sent along. What it prints appears
        below the cell at once; its last value and its figures when it is done. `_task.result()`
        waits for it.

        Example: `%%task -o model`, and a cell that assigns `model`.
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
        place = OutputPlace(DisplayHandle(), title, code.filename)
        future.add_done_callback(lambda _: place.show(future))

    @cell_magic
    def everywhere(self, line: str, cell: str) -> None:
        """Run the cell once on every worker, and on each that joins later.

        For imports, settings and warm caches. What it defines, cells under `%%task` see later on.
        What it prints appears below the cell, worker by worker, also of those that join later.
        """
        if line.strip():
            raise UsageError("%%everywhere takes no arguments")
        fn = Cell.read(self.shell, "everywhere", line, cell).everywhere()
        printed = WorkerOutputDisplay()
        job = everywhere(self._queue().session, fn, show=printed.add)
        self._follow(job)
        job.wait()
        printed.show(future.worker or "" for future in job[:])
        for error in job.errors.values():
            raise error

    @magic_arguments("%pmap")
    @kwds(usage="%%pmap loop [-o NAME] [--lane L] [--time-limit S] [--retries N]")
    @argument("loop", nargs="*", help="`x in xs`, or `i, x in enumerate(xs)`; before all options")
    @argument("-o", "--output", metavar="NAME", help="variable for the job; it is also in `_job`")
    @_lane
    @_time_limit
    @argument(
        "--retries", type=_integer, metavar="N", help="how often an item that raises is run again"
    )
    @cell_magic
    def pmap(self, line: str, cell: str) -> Job[Any]:
        """Run the cell for each item of a loop, on the workers.

        The value of its last expression is the item's result; the job that is returned has them
        in order: `_job.result()` waits for them. The notebook's variables and functions that the
        cell uses are sent along; what it assigns stays on the worker.

        Example: `%%pmap x in xs -o squares`, and a cell whose last line is `x ** 2`.
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

    # -- what goes on --------------------------------------------------------------------------

    @line_magic
    def jobs(self, line: str) -> JobList | None:
        """List what magics submitted and is not over, and show the named jobs of `q`."""
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
    @argument("-o", "--output", metavar="NAME", help="variable for the job; it is also in `_job`")
    @line_magic
    def attach(self, line: str) -> Job[Any]:
        """Show a named job of `q`, whichever kernel made it: `q.map(..., name="...")`.

        `%jobs` lists them. To attach from another notebook, give the queue a name in both:
        `q = TaskQueue("ours")` or `%queue ours`. Without one, it belongs to its notebook.
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
        """Cancel the job or future of that name, or all that magics submitted."""
        name = parse_argstring(self.cancel, line).name
        chosen = list(self._open) if name is None else [self._variables.get(name)]
        for it in chosen:
            if not isinstance(it, Job | Future):
                raise UsageError(
                    f"{name!r} is no variable that holds a job or future; of a named job without"
                    f" one: q.attach({name!r}).cancel()"
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
        """Return the queue `q`, which is made if there is none."""
        queue = self._variables.get("q")
        if queue is None:
            queue = TaskQueue()
            self._bind("q", queue)
        if not isinstance(queue, TaskQueue):
            raise UsageError(f"`q` is a {type(queue).__name__}, no TaskQueue; see %queue")
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
    """Return the variables in ``a,b``; UsageError if one can't be."""
    names = [part.strip() for part in text.split(",")] if text else []
    for name in names:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise UsageError(f"{option} {text}: {name!r} is no name of a variable")
    return names


def _write(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")
