"""Every argument of the public API: what can't be used is refused at the call, by name.

`ROWS` has a row for each parameter of each public callable, which are found by inspection: a new
parameter without a row fails. A row says what kind of value the parameter takes, and how to give it
one. `VALUES` are then held against each: those that its kind names are taken, all others must raise
`TypeError` or `ValueError` with the parameter's name and what is allowed.
"""

from __future__ import annotations

import enum
import functools
import inspect
import itertools
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

import nbstreamq
from nbstreamq import JobNotFound, TaskQueue, track
from nbstreamq.client.queue import TaskFunction

#: Made by nbstreamq, or called by IPython; no user gives these arguments.
NOT_FOR_USERS = {
    "DeathCertificate",
    "Estimate",
    "Job",
    "Ref",
    "TaskFuture",
    "TaskFuture.set_result",
    "TaskFunction",
    "load_ipython_extension",
}


class Colour(enum.StrEnum):
    RED = "red"


VALUES = {
    "None": None,
    "an object": object(),
    "a list": [],
    "a function": abs,
    "bytes": b"abc",
    "True": True,
    "False": False,
    "a bool of NumPy": np.True_,
    "0": 0,
    "1": 1,
    "-1": -1,
    "2**31": 2**31,
    "2**63": 2**63,
    "10**5000": 10**5000,
    "0.0": 0.0,
    "2.5": 2.5,
    "-0.5": -0.5,
    "5e-324": 5e-324,
    "1e30": 1e30,
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "a complex": 1j,
    "an int of NumPy": np.int64(2),
    "a negative int of NumPy": np.int8(-2),
    "a large int of NumPy": np.uint64(2**64 - 1),
    "a float of NumPy": np.float32(2.5),
    "nan of NumPy": np.float64("nan"),
    "an array": np.arange(3),
    "a Fraction": Fraction(5, 2),
    "a tiny Fraction": Fraction(1, 10**400),
    "a Decimal": Decimal("2.5"),
    "nan of Decimal": Decimal("nan"),
    "sNaN of Decimal": Decimal("sNaN"),
    "64 MiB": 2**26,
    "64 MiB as a float": 2.0**26,
    "an empty text": "",
    "a space": " ",
    "a name": "abc",
    "a text of NumPy": np.str_("abc"),
    "an enum": Colour.RED,
    "umlauts": "ä" * 40,
    "too many umlauts": "ä" * 150,
    "auto": "auto",
    "return": "return",
    "a number as text": "2",
    "-n": "-n",
    "--help": "--help",
    "@worker": "@worker",
    "a:b": "a:b",
    "{a}": "{a}",
    "two words": "a b",
    "a line break": "a\n",
    "NUL": "a\0b",
    "an escape": "\x1b[31m",
    "a bidi mark": "a\u202eb",
    "a surrogate": "\udcff",
    "10 kB": "x" * 10_000,
    "a URL of a folder": "memory://folder",
    "a URL of a page": "http://example.org",
}

NAMES = {"a name", "a text of NumPy", "an enum", "umlauts", "auto", "return", "a number as text"}
#: What is a text, and neither blank nor impossible to encode.
TEXTS = {
    name
    for name, value in VALUES.items()
    if isinstance(value, str) and value.strip() and name not in {"NUL", "a surrogate"}
}
URLS = {"a URL of a folder", "a URL of a page"}
SIZES = {"64 MiB", "64 MiB as a float"}
POSITIVE = {"2.5", "5e-324", "an int of NumPy", "a float of NumPy", "a Fraction", "a Decimal"}
NUMBERS = {"0", "0.0", "1"} | POSITIVE | {"a tiny Fraction"}
COUNTS = {"0", "1", "an int of NumPy"}
LARGE = {"2**31", "64 MiB"}
#: Kind -> names of the values that it takes. None in an option means: as before.
TAKES = {
    "anything": set(VALUES),
    "workers": {"0", "1", "an int of NumPy", "auto"},
    "a place or None": {"None"},
    "a kind of environment or None": {"None"},
    "a number of workers or None": {"None", "0", "1", "an int of NumPy"},
    "a count or None": {"None", *COUNTS, *LARGE},
    "retries": {"None", "64 MiB", *COUNTS},
    "a count from 1, or auto": {"auto", "1", "an int of NumPy"} | LARGE,
    "a count from 1, or None": {"None", "1", "an int of NumPy"} | LARGE,
    "a pause or None": {"None"} | NUMBERS,
    "a limit of time or None": {"None", "1"} | POSITIVE,
    "a limit of memory or None": {"None", "2**31"} | SIZES,
    "a timeout": {"None", "2**31", "-1", "-0.5", "a negative int of NumPy"} | NUMBERS | SIZES,
    "a flag": {"True", "False", "a bool of NumPy"},
    "raise or return": {"return"},
    "a small count from 1": {"1", "an int of NumPy"},
    "a small count from 1, or None": {"None", "1", "an int of NumPy"},
    "a flag or auto": {"True", "False", "a bool of NumPy", "auto"},
    "a flag or None": {"None", "True", "False", "a bool of NumPy"},
    "the name of a queue or None": NAMES | {"None", "@worker", "a:b"} | URLS,
    "the name of a job": NAMES | {"@worker"},
    "the name of a job or None": NAMES | {"@worker", "None"},
    "the name of a limit": NAMES | {"@worker", "a:b"} | URLS,
    "a rate or None": {"None", "1"} | POSITIVE - {"5e-324"},
    "a lane or None": NAMES | {"a:b", "None"} | URLS,
    "a server or None": {"None"},
    "a client or None": {"None"},
    "a secret or None": {"None"} | TEXTS,
    "a store or None": {"None", "a URL of a folder"},
    "a seed or None": {
        "None", "0", "1", "an int of NumPy", "a large int of NumPy", "an array", "2**63", *LARGE
    },
    "a function": {"a function"},
    "a function or None": {"None", "a function"},
    "an iterable": {
        "a list", "bytes", "an array", *(n for n, v in VALUES.items() if isinstance(v, str))
    },
}  # fmt: skip


class Calls:
    """How each parameter is given a value; what that makes goes away again."""

    def __init__(self, url, queue, queue_name):
        self.url, self.queue, self.name = url, queue, queue_name
        self._numbers = itertools.count()

    def make(self, *args, **options):
        options = {"workers": 0, "secret": "secret"} | options
        TaskQueue(*args, **options).shutdown()

    def view(self, name, value):
        self.queue.options(**{name: value})

    @property
    def job(self):
        return self.queue.map(abs, [1])

    @functools.cached_property
    def finished_job(self):
        job = self.job
        job.wait(20)
        return job

    @property
    def future(self):
        future = self.queue.submit(abs, 1)
        future.result(20)
        return future

    @property
    def new_name(self):
        """The name of a queue that is not there yet."""
        return f"{self.name}-{next(self._numbers)}"

    def shut_down(self, **arguments):
        queue = TaskQueue(self.name, self.url, workers=0)
        try:
            queue.shutdown(**arguments)
        finally:
            queue.shutdown()

    def drop(self, job):
        """Forget a named job that a value made, and wait for any other."""
        list(job)
        if ":" in job.id:
            job.delete()

    def attach(self, name):
        try:
            self.queue.attach(name)
        except JobNotFound:
            return

    def retry(self, fn):
        self.job.retry_failed(fn)


def _anything(calls, value):
    """Take any value."""


OPTIONS = {
    "retries": "retries",
    "backoff": "a pause or None",
    "time_limit": "a limit of time or None",
    "memory_limit": "a limit of memory or None",
    "lane": "a lane or None",
    "delay": "a pause or None",
    "cache": "a flag or None",
    "progress": "a flag or None",
    "concurrency": "a small count from 1, or None",
}

MAP_OPTIONS = {
    "timeout": "a timeout",
    "chunksize": "a count from 1, or auto",
    "buffersize": "a count from 1, or None",
    "name": "the name of a job or None",
    "seed": "a seed or None",
    "replace": "a flag or auto",
}

ROWS = {
    "TaskQueue.name": ("the name of a queue or None", lambda c, v: c.make(v, c.url)),
    "TaskQueue.url": ("a server or None", lambda c, v: v is None or c.make(c.name, v)),
    "TaskQueue.client": (
        "a client or None",
        lambda c, v: c.make(c.name, c.url if v is None else None, client=v),
    ),
    "TaskQueue.workers": ("workers", lambda c, v: c.make(c.name, c.url, workers=v)),
    "TaskQueue.secret": ("a secret or None", lambda c, v: c.make(c.new_name, c.url, secret=v)),
    "TaskQueue.insecure": ("a flag", lambda c, v: c.make(c.name, c.url, insecure=v)),
    "TaskQueue.store": ("a store or None", lambda c, v: c.make(c.name, c.url, store=v)),
    "TaskQueue.initializer": (
        "a function or None",
        lambda c, v: c.make(c.name, c.url, initializer=v, initargs=(1,)),
    ),
    "TaskQueue.initargs": ("an iterable", lambda c, v: c.make(c.name, c.url, initargs=v)),
    "TaskQueue.joblib.name": ("the name of a job or None", lambda c, v: c.queue.joblib(v)),
    "TaskQueue.submit.fn": ("a function", lambda c, v: c.queue.submit(v, 1).result(20)),
    "TaskQueue.submit.args": ("anything", _anything),
    "TaskQueue.submit.kwargs": ("anything", _anything),
    "TaskQueue.map.fn": ("a function", lambda c, v: c.drop(c.queue.map(v, [1]))),
    "TaskQueue.map.iterables": ("an iterable", lambda c, v: c.drop(c.queue.map(str, v))),
    "TaskQueue.starmap.fn": ("a function", lambda c, v: c.drop(c.queue.starmap(v, [(1,)]))),
    "TaskQueue.starmap.items": ("an iterable", lambda c, v: c.queue.starmap(str, v).wait()),
    **{
        f"TaskQueue.map.{name}": (
            kind,
            lambda c, v, name=name: c.drop(c.queue.map(abs, [1], **{name: v})),
        )
        for name, kind in MAP_OPTIONS.items()
    },
    **{
        f"TaskQueue.starmap.{name}": (
            kind,
            lambda c, v, name=name: c.drop(c.queue.starmap(abs, [(1,)], **{name: v})),
        )
        for name, kind in MAP_OPTIONS.items()
    },
    "TaskQueue.jobs.all": ("a flag", lambda c, v: c.queue.jobs(all=v)),
    "TaskQueue.task.fn": ("a function or None", lambda c, v: c.queue.task(v)),
    "TaskQueue.task.options": ("a pause or None", lambda c, v: c.queue.task(delay=v)),
    **{
        f"TaskQueue.options.{name}": (kind, lambda c, v, name=name: c.view(name, v))
        for name, kind in OPTIONS.items()
    },
    "TaskQueue.limit.name": ("the name of a limit", lambda c, v: c.queue.limit(v, rate=1)),
    "TaskQueue.limit.concurrent": (
        "a count from 1, or None",
        lambda c, v: c.queue.limit("api", concurrent=v, rate=1),
    ),
    "TaskQueue.limit.rate": (
        "a rate or None",
        lambda c, v: c.queue.limit("api", concurrent=1, rate=v),
    ),
    **{
        f"Limit.{name}": ("anything", _anything) for name in ("queue", "name", "concurrent", "rate")
    },
    "TaskQueue.put.obj": ("anything", _anything),
    "TaskQueue.everywhere.fn": (
        "a function",
        lambda c, v: c.drop(c.queue.everywhere(v, 1)),
    ),
    "TaskQueue.everywhere.args": ("anything", _anything),
    "TaskQueue.everywhere.kwargs": ("anything", _anything),
    "TaskQueue.attach.name": ("the name of a job", lambda c, v: c.attach(v)),
    "TaskQueue.run.on": ("a place or None", lambda c, v: c.queue.run(0, on=v)),
    "TaskQueue.run.options": ("anything", _anything),
    "TaskQueue.run.nworkers": ("a number of workers or None", lambda c, v: c.queue.run(v)),
    "TaskQueue.run.env": (
        "a kind of environment or None",
        lambda c, v: c.queue.run(0, env=v),
    ),
    "TaskQueue.run.max_tasks_per_worker": (
        "a count from 1, or None",
        lambda c, v: c.queue.run(0, max_tasks_per_worker=v),
    ),
    "TaskQueue.run.max_memory": (
        "a limit of memory or None",
        lambda c, v: c.queue.run(0, max_memory=v),
    ),
    "TaskQueue.shutdown.wait": (
        "a flag",
        lambda c, v: c.shut_down(wait=v),
    ),
    "TaskQueue.shutdown.cancel_futures": (
        "a flag",
        lambda c, v: c.shut_down(cancel_futures=v),
    ),
    "TaskFuture.__call__.block": ("a flag", lambda c, v: c.future(block=v)),
    "TaskFuture.__call__.timeout": ("a timeout", lambda c, v: c.future(timeout=v)),
    "TaskFuture.result.timeout": ("a timeout", lambda c, v: c.future.result(v)),
    "TaskFuture.exception.timeout": ("a timeout", lambda c, v: c.future.exception(v)),
    "Job.result.timeout": ("a timeout", lambda c, v: c.job.result(v)),
    "Job.result.errors": ("raise or return", lambda c, v: c.job.result(errors=v)),
    "Job.wait.timeout": ("a timeout", lambda c, v: c.job.wait(v)),
    "Job.as_completed.timeout": ("a timeout", lambda c, v: c.job.as_completed(v)),
    "Job.retry_failed.fn": ("a function or None", lambda c, v: c.retry(v)),
    "Job.estimate.n_items": (
        "a count from 1, or None",
        lambda c, v: c.finished_job.estimate(v),
    ),
    "Estimate.seconds.n_workers": (
        "a small count from 1",
        lambda c, v: c.finished_job.estimate().seconds(v),
    ),
    "Job.add_done_callback.fn": ("a function", lambda c, v: c.job.add_done_callback(v)),
    "TaskFunction.__call__.args": ("anything", _anything),
    "TaskFunction.__call__.kwargs": ("anything", _anything),
    "TaskFunction.map.iterables": (
        "an iterable",
        lambda c, v: c.drop(TaskFunction(c.queue, str).map(v)),
    ),
    "TaskFunction.map.options": (
        "a timeout",
        lambda c, v: c.drop(TaskFunction(c.queue, abs).map([1], timeout=v)),
    ),
    "TaskFunction.options.options": (
        "a pause or None",
        lambda c, v: TaskFunction(c.queue, abs).options(delay=v),
    ),
    "checkpoint.state": ("anything", _anything),
    "resume.default": ("anything", _anything),
    "track.items": ("an iterable", lambda c, v: track(v)),
    "track.total": ("a count or None", lambda c, v: track([], v)),
}


def _parameters():
    """Yield ``callable.parameter`` of all that users may call."""
    public = {name: getattr(nbstreamq, name) for name in nbstreamq.__all__}
    for name, found in {**public, "TaskFunction": TaskFunction}.items():
        if inspect.isclass(found) and issubclass(found, BaseException):
            continue
        for path, function in _callables(name, found):
            if path in NOT_FOR_USERS:
                continue
            signature = inspect.signature(function)
            yield from (f"{path}.{p}" for p in signature.parameters if p != "self")


def _callables(name, found):
    if inspect.isfunction(found):
        yield name, found
        return
    yield name, found.__init__
    for attribute, member in inspect.getmembers(found, inspect.isfunction):
        is_ours = member.__module__.startswith("nbstreamq")
        if is_ours and (not attribute.startswith("_") or attribute == "__call__"):
            yield f"{name}.{attribute}", member


def test_every_parameter_has_a_row():
    assert set(_parameters()) == set(ROWS)


@pytest.fixture
def calls(server_url, shared_queue, queue_name):
    return Calls(server_url, shared_queue, queue_name)


@pytest.mark.parametrize("row", [r for r, (kind, _) in ROWS.items() if kind != "anything"])
def test_what_can_not_be_used_is_refused_at_the_call(calls, row):
    kind, call = ROWS[row]
    parameter = {"TaskFunction.map.options": "timeout"}.get(row, row.rpartition(".")[2])
    parameter = {"options": "delay", "iterables": "iterable 1"}.get(parameter, parameter)
    wrong = []
    for name in VALUES.keys() - TAKES[kind]:
        try:
            call(calls, VALUES[name])
        except (TypeError, ValueError) as error:
            text = str(error)
            if (
                not text.startswith(f"{parameter} ")
                or not re.search("must|no host", text)
                or len(text) > 400
            ):
                wrong.append(f"{name}: {text!r}")
        except Exception as error:
            wrong.append(f"{name}: {error!r}")
        else:
            wrong.append(f"{name} is taken")
    assert wrong == []


@pytest.mark.parametrize(
    "row",
    [
        r
        for r, (kind, _) in ROWS.items()
        # Those would start or stop workers, or be over at once: other tests say what they do.
        if kind not in {"anything", "a timeout"} and not r.startswith("TaskQueue.run.")
    ],
)
def test_what_can_be_used_is_taken(calls, row):
    kind, call = ROWS[row]
    for name in TAKES[kind]:
        call(calls, VALUES[name])


def test_times_that_are_negative_are_over(queue, gate):
    future = queue.submit(gate.hold)
    for ask in (future.result, future.exception, lambda t: future(timeout=t)):
        with pytest.raises(TimeoutError):
            ask(-1)
    job = queue.map(gate.hold, [1], timeout=-1)
    for ask in (job.result, job.wait, lambda t: next(job.as_completed(t)), lambda _: list(job)):
        with pytest.raises(TimeoutError):
            ask(-np.float64(2))
    gate.open()
    assert future.result(20) is None


def test_numbers_of_numpy_count(make_queue, wait_until):
    queue = make_queue(workers=np.int64(1))
    assert list(queue.map(abs, [-1, -2, -3], chunksize=np.int8(2), timeout=np.float32(20))) == [
        1, 2, 3
    ]  # fmt: skip
    queue.run(np.int64(2))
    wait_until(lambda: len(queue.workers()) == 2, describe="two workers")


def test_so_many_retries_that_pauses_would_overflow(queue, tmp_path):
    log = tmp_path / "calls"

    def fail():
        with log.open("a") as file:
            file.write("x")
        raise ConnectionError(str(log.stat().st_size))

    with pytest.raises(ConnectionError, match="1101"):
        queue.options(retries=1100).submit(fail).result(50)


@pytest.mark.parametrize("name", ["\udcff", "x" * 10_000, "a\0b"])
def test_a_function_s_name_may_be_anything(shared_queue, name):
    def fn():
        return 1

    fn.__qualname__ = fn.__name__ = name
    assert shared_queue.submit(fn).result(20) == 1
