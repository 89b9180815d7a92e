"""Cells that run on workers: how they become functions, and where their output is shown."""

from __future__ import annotations

import ast
import dis
import html
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, cast

from IPython.core.error import UsageError
from IPython.display import DisplayHandle

from ..client.future import CallFuture, TaskFuture
from ..objects.bytecode import names_of
from ..sizes import plural
from ..wire.messages import Event
from . import remote
from .html import tail
from .outputs import EndOfCall, Output
from .view import MAX_OUTPUT, worker_labels

#: Module of functions that travel by value.
_BY_VALUE = "__main__"

# -- how a cell becomes a function --------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """The code of a cell, and the notebook around it.

    Attributes
    ----------
    tree
        Its syntax tree, with the line numbers of the whole cell.
    filename
        The name by which tracebacks find its source.
    user_ns
        The notebook's variables.
    hidden
        The variables that IPython put there.
    """

    tree: ast.Module
    filename: str
    user_ns: dict[str, Any]
    hidden: dict[str, Any]

    @classmethod
    def read(cls, shell: Any, magic: str, line: str, source: str) -> Cell:
        """Parse the body of a cell that begins with the line ``%%magic line``.

        Raises
        ------
        UsageError
            It is empty, or it is not plain Python.
        """
        # The magic becomes a comment, since tools that show a traceback may parse the source.
        whole = f"# %%{magic} {line}\n{source}"
        filename = shell.compile.cache(whole, shell.execution_count, raw_code=whole)
        try:
            tree = ast.parse(source, filename)
        except SyntaxError as error:
            raise UsageError(_explain(shell, source, error)) from None
        if not tree.body:
            raise UsageError(f"%%{magic}: the cell is empty")
        ast.increment_lineno(tree)
        if source.rstrip().endswith(";") and isinstance(tree.body[-1], ast.Expr):
            tree.body.append(ast.copy_location(ast.Pass(), tree.body[-1]))
        return cls(tree, filename, shell.user_ns, shell.user_ns_hidden)

    def task(self, name: str, inputs: Iterable[str], wanted: Sequence[str]) -> FunctionType:
        """Return the function that runs the cell on a worker.

        Parameters
        ----------
        name
            For people.
        inputs
            Variables to send in addition to those that the cell uses.
        wanted
            Variables to bring back.
        """
        return _by_value(
            remote.run_cell,
            name,
            body=self._body(name),
            home=_function(_nothing.__code__, self.user_ns),
            inputs=self.inputs(inputs),
            wanted=tuple(wanted),
        )

    def everywhere(self) -> FunctionType:
        """Return the function that runs the cell on each worker."""
        name = "everywhere"
        return _by_value(remote.run_everywhere, name, body=self._body(name), inputs=self.inputs())

    def loop(self, loop: Loop, name: str) -> FunctionType:
        """Return the function that runs the cell for one item of `loop`."""
        statements = [*loop.unpacking, *self.tree.body]
        last = statements[-1]
        if isinstance(last, ast.Expr):
            statements[-1] = ast.copy_location(ast.Return(last.value), last)
        module = ast.parse(f"def {name}({loop.parameter}): ...")
        definition = module.body[0]
        if isinstance(definition, ast.FunctionDef):
            definition.body = statements
        code = self._compile(module)
        inner = next(c for c in code.co_consts if isinstance(c, CodeType))
        return _function(inner, self.user_ns)

    def inputs(self, more: Iterable[str] = ()) -> dict[str, Any]:
        """Return the notebook's variables that the cell uses, and those named in `more`.

        Raises
        ------
        UsageError
            A variable in `more` does not exist.
        """
        user_ns = self.user_ns
        for name in more:
            if name not in user_ns:
                raise UsageError(f"-i {name}: there is no variable {name!r}")
        used = [n for n in needed_names(self.tree) if n in user_ns and not self._is_hidden(n)]
        return {name: user_ns[name] for name in [*used, *more]}

    def _is_hidden(self, name: str) -> bool:
        return name in self.hidden and self.hidden[name] is self.user_ns[name]

    def _body(self, name: str) -> FunctionType:
        """Return the cell's code as a function that takes its source along."""
        *statements, last = self.tree.body
        if isinstance(last, ast.Expr):
            target = ast.Name(remote.VALUE, ast.Store())
            last = ast.copy_location(ast.Assign([target], last.value), last)
        code = self._compile(ast.Module([*statements, last], []))
        # Without this name, tracebacks would say <module>.
        return _function(code.replace(co_name=name, co_qualname=name), {})

    def _compile(self, module: ast.Module) -> CodeType:
        try:
            return _compile(module, self.filename)
        except SyntaxError as error:
            raise UsageError(f"SyntaxError in line {error.lineno}: {error.msg}") from None


@dataclass(frozen=True)
class Loop:
    """The head of a loop: ``x in xs``.

    Attributes
    ----------
    parameter
        What a function calls the item.
    unpacking
        Statements that assign the item to the loop's variables.
    items
        Expression that yields the items.
    """

    parameter: str
    unpacking: tuple[ast.stmt, ...]
    items: str

    @classmethod
    def read(cls, text: str) -> Loop:
        """Parse the head of a loop; UsageError if it is something else."""
        wrong = f"{text!r} is not a loop such as `x in xs` or `i, x in enumerate(xs)`"
        try:
            found = ast.parse(f"[0 for {text}]", mode="eval").body
        except SyntaxError as error:
            raise UsageError(f"{wrong}: {error.msg}") from None
        if not isinstance(found, ast.ListComp) or len(found.generators) != 1:
            raise UsageError(wrong)
        target = found.generators[0].target
        items = f"({ast.unparse(target)} for {text})"
        if isinstance(target, ast.Name):
            return cls(target.id, (), items)
        unpack = ast.parse(f"{ast.unparse(target)} = _item").body
        return cls("_item", tuple(unpack), items)


def _explain(shell: Any, source: str, error: SyntaxError) -> str:
    text = f"SyntaxError in line {(error.lineno or 0) + 1}: {error.msg}"
    if shell.transform_cell(source) != source:
        text += " (on a worker, a cell is plain Python: no lines with % or !)"
    return text


def _nothing() -> None:
    """Do nothing. A function with this code brings the notebook's globals to a worker."""


def _function(code: CodeType, namespace: dict[str, Any]) -> FunctionType:
    fn = FunctionType(code, namespace)
    fn.__module__ = _BY_VALUE
    return fn


def _by_value(fn: Callable[..., Any], name: str, **arguments: Any) -> FunctionType:
    """Return a copy of a function in `remote` that travels by value with its arguments."""
    namespace: dict[str, Any] = {"VALUE": remote.VALUE}
    for key, found in vars(remote).items():
        if isinstance(found, FunctionType):
            namespace[key] = _function(found.__code__, namespace)
    task = _function(namespace[fn.__name__].__code__, namespace)
    task.__name__ = task.__qualname__ = name
    task.__kwdefaults__ = arguments
    return task


def _compile(module: ast.Module, filename: str) -> CodeType:
    # Without dont_inherit, the __future__ imports of this file would apply to the cell.
    return compile(ast.fix_missing_locations(module), filename, "exec", dont_inherit=True)


# -- which names a cell needs ------------------------------------------------------------------


def needed_names(tree: ast.Module) -> list[str]:
    """Return the global names that a cell reads, unless it has surely assigned them before.

    A function in the cell runs later: what it reads is needed unless the cell assigns it anywhere.
    """
    reads = _Reads()
    bound = reads.block(tree.body, set())
    return list(reads.now | {name: None for name in reads.later if name not in bound})


class _Reads:
    """Goes through statements in order, and notes what they read: now, or in functions later."""

    def __init__(self) -> None:
        self.now: dict[str, None] = {}
        self.later: dict[str, None] = {}

    def block(self, statements: Iterable[ast.stmt], bound: set[str]) -> set[str]:
        """Read statements; return `bound` and the names that they surely assign."""
        bound = set(bound)
        for statement in statements:
            visit = getattr(self, f"_{type(statement).__name__.lower()}", self._simple)
            bound |= visit(statement, bound)
        return bound

    def _simple(self, statement: ast.stmt, bound: set[str]) -> set[str]:
        if isinstance(statement, ast.Break | ast.Continue):  # these can't be compiled alone
            return set()
        code = _compile(ast.Module([statement], []), "<cell>")
        stored = set()
        for op in dis.get_instructions(code):
            if op.opname in ("LOAD_NAME", "LOAD_GLOBAL") and op.argval not in bound:
                self.now[op.argval] = None
            elif op.opname in ("STORE_NAME", "STORE_GLOBAL"):
                stored.add(op.argval)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self.later |= dict.fromkeys(names_of(constant).globals)
        return stored

    def _expressions(self, values: Iterable[ast.expr | None], bound: set[str]) -> set[str]:
        return self.block([ast.Expr(value) for value in values if value], bound)

    def _target(self, target: ast.expr, bound: set[str]) -> set[str]:
        return self.block([ast.Assign([target], ast.Constant(None))], bound)

    def _if(self, node: ast.If, bound: set[str]) -> set[str]:
        bound = self._expressions([node.test], bound)
        return self.block(node.body, bound) & self.block(node.orelse, bound)

    def _while(self, node: ast.While, bound: set[str]) -> set[str]:
        bound = self._expressions([node.test], bound)
        self.block(node.body, bound)
        self.block(node.orelse, bound)
        return bound

    def _for(self, node: ast.For, bound: set[str]) -> set[str]:
        bound = self._expressions([node.iter], bound)
        self.block(node.body, self._target(node.target, bound))
        self.block(node.orelse, bound)
        return bound

    def _with(self, node: ast.With, bound: set[str]) -> set[str]:
        for item in node.items:
            bound = self._expressions([item.context_expr], bound)
            if item.optional_vars:
                bound = self._target(item.optional_vars, bound)
        return self.block(node.body, bound)

    def _try(self, node: ast.Try, bound: set[str]) -> set[str]:
        ways = [self.block([*node.body, *node.orelse], bound)]
        for handler in node.handlers:
            caught = {handler.name} if handler.name else set()
            before = self._expressions([handler.type], bound)
            ways.append(self.block(handler.body, before | caught) - caught)
        return set.intersection(*ways) | self.block(node.finalbody, bound)

    def _classdef(self, node: ast.ClassDef, bound: set[str]) -> set[str]:
        values = [*node.decorator_list, *node.bases, *(k.value for k in node.keywords)]
        self.block(node.body, self._expressions(values, bound))
        return {node.name}


# -- what comes back from a worker --------------------------------------------------------------

#: What a cell shows: MIME type -> text.
_Bundle = dict[str, Any]


class CellFuture(CallFuture[Any]):
    """The future of a cell's last value; with it, the cell's variables come back.

    The worker returns the value, the variables and what the cell shows: see `remote.run_cell`.
    """

    _receive: Callable[[dict[str, Any]], object]
    _receiving: threading.Lock
    _received = False

    @classmethod
    def of(cls, future: TaskFuture[Any], receive: Callable[[dict[str, Any]], object]) -> CellFuture:
        """Turn the future of a cell's task into this; `receive` gets the variables, once."""
        cell_future = cast("CellFuture", future)
        # It stays the same object, since the session knows it.
        cell_future.__class__ = cls
        cell_future.hand_over_to(receive)
        return cell_future

    def hand_over_to(self, receive: Callable[[dict[str, Any]], object]) -> None:
        """Have `receive` called with the variables before `result` returns the value."""
        self._receive = receive
        self._receiving = threading.Lock()

    def result(self, timeout: float | None = None) -> Any:
        """Return the value, as `TaskFuture.result` does."""
        value, outputs, _ = super().result(timeout)
        with self._receiving:
            if not self._received:
                self._receive(outputs)
            self._received = True
        return value

    def shown(self) -> list[tuple[_Bundle, _Bundle]]:
        """Return what the cell shows: data and metadata of each output. It must be done."""
        return cast("list[tuple[_Bundle, _Bundle]]", super().result(0)[2])

    def replay(self) -> Any:
        """Run the cell here, with the variables that were sent; return its value."""
        return cast("Any", super().replay())[0]


class CellOutput:
    """The output of a cell in the notebook: what the task prints, and then its outcome.

    Parameters
    ----------
    handle
        The output's; any thread may update it.
    name
        The task's.
    filename
        That of the cell's code, to tell where it failed.
    """

    def __init__(self, handle: Output, name: str, filename: str) -> None:
        self._handle = handle
        self._name = name
        self._filename = filename
        self._begun = time.monotonic()
        self._sent = time.strftime("%H:%M:%S", time.gmtime())
        self._lock = threading.Lock()
        self._is_over = False
        handle.display(self._running(""))

    def follow(self, future: CellFuture) -> None:
        """Show what the cell prints, and its outcome when it is over."""
        future.show = lambda *_: self._print(future)
        EndOfCall(future, lambda: self._end(future))

    def _running(self, printed: str) -> _Bundle:
        # A saved notebook may keep that, if nothing waits for the end.
        return _text(f"{printed}{self._name}: sent at {self._sent} UTC, not over yet")

    def _print(self, future: CellFuture) -> None:
        with self._lock:
            if not self._is_over:
                self._handle.update(self._running(_printed(future)))

    def _end(self, future: CellFuture) -> None:
        shown, printed = self._outcome(future), _printed(future)
        with self._lock:
            self._is_over = True
            if printed and len(shown) == 1 and shown[0][0].keys() == {"text/plain"}:
                shown = [(_text(printed + shown[0][0]["text/plain"]), {})]
            elif printed:
                shown.insert(0, (_text(printed.rstrip("\n")), {}))
            data, metadata = (
                shown[0] if len(shown) == 1 else (_join([data for data, _ in shown]), {})
            )
            self._handle.update(data, metadata)

    def _outcome(self, future: CellFuture) -> list[tuple[_Bundle, _Bundle]]:
        """Return data and metadata of what is to be shown: one or more."""
        if future.cancelled():
            return [(_text(f"{self._name}: cancelled"), {})]
        error = future.exception()
        if error is not None:
            return [(_text(f"{self._name}: {self._explain(error)}"), {})]
        future.result()  # the variables arrive before the output says so
        took = time.monotonic() - self._begun
        return future.shown() or [(_text(f"{self._name}: done in {took:.1f} s"), {})]

    def _explain(self, error: BaseException) -> str:
        """Return the error in one line."""
        message = str(error).strip().partition("\n")[0]
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == self._filename]
        where = f" (line {lines[-1]})" if lines else ""
        return f"{type(error).__name__}: {message}{where}" if message else type(error).__name__


def _printed(future: CellFuture) -> str:
    """Return the last of what a cell printed; it ends with a line's end if there is any."""
    text = tail(future.logs)
    return f"{text.rstrip(chr(10))}\n" if text else ""


def _text(text: str) -> _Bundle:
    return {"text/plain": text}


def _join(bundles: list[_Bundle]) -> _Bundle:
    """Return one bundle that shows several below each other: an output has only one."""
    texts = [str(bundle.get("text/plain", "")) for bundle in bundles]
    return {"text/plain": "\n".join(texts), "text/html": "\n".join(map(_as_html, bundles))}


def _as_html(bundle: _Bundle) -> str:
    for kind in ("text/html", "image/svg+xml"):
        if kind in bundle:
            return f"<div>{bundle[kind]}</div>"
    for kind in ("image/png", "image/jpeg"):
        if kind in bundle:
            return f'<div><img src="data:{kind};base64,{bundle[kind].strip()}"></div>'
    return f"<pre>{html.escape(str(bundle.get('text/plain', '')))}</pre>"


class WorkerOutputDisplay:
    """What workers print, grouped by worker, in one output that later texts update.

    It has no thread: the thread that reads the events calls `add`.
    """

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._first: set[str] = set()
        self._handle: DisplayHandle | None = None
        self._lock = threading.Lock()

    def add(self, _name: str, event: Event) -> None:
        """Take in what a worker printed; see `JobTable.show`."""
        with self._lock:
            for _, _, text in json.loads(event.body):
                known = self._texts.get(event.worker, "")
                self._texts[event.worker] = (known + text)[-MAX_OUTPUT:]
            if self._handle:
                self._handle.update(self._data(), raw=True)

    def show(self, workers: Iterable[str]) -> None:
        """Display what there is so far. `workers` were there when the cell ran."""
        with self._lock:
            self._first = set(workers)
            self._handle = DisplayHandle()
            self._handle.display(self._data(), raw=True)

    def _data(self) -> dict[str, Any]:
        labels = worker_labels(sorted(self._first | self._texts.keys()))
        n = len(self._first)
        ran = f"Ran on {plural(n, 'worker')}." if n else "There are no workers yet."
        lines = [f"{ran} Workers that join later run it, too."]
        for worker, label in labels.items():
            if text := self._texts.get(worker):
                later = "" if worker in self._first else " (joined later)"
                lines.append(f"{label}{later}:\n{text.rstrip()}")
        return {"text/plain": "\n".join(lines)}
