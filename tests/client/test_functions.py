"""Any function of a notebook runs on a worker, as it is at the moment of the call."""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import importlib.util
import math
import operator
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nbstreamq import NotPicklable, ResultNotPicklable


class Scale:
    """A class of this module, which no worker can import."""

    def __init__(self, factor):
        self.factor = factor

    def times(self, x):
        return self.factor * x

    @classmethod
    def name(cls):
        return cls.__name__

    @staticmethod
    def half(x):
        return x / 2

    def __call__(self, x):
        return -self.factor * x

    def __eq__(self, other):
        return self.factor == other.factor

    __hash__ = None


def factorial(n):
    """Calls itself by its global name."""
    return n * factorial(n - 1) if n else 1


def uses_import(x):
    return math.floor(x)


def double(x):
    return 2 * x


def make_adder(n):
    return lambda x: x + n


def make_even():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    return even


def make_fib():
    def fib(n):
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    return fib


KINDS = {
    "builtin": (abs, -3, 3),
    "of a standard module": (math.sqrt, 9, 3),
    "lambda": (lambda x: x * 7, 6, 42),
    "closure": (make_adder(5), 1, 6),
    "recursive by name": (factorial, 5, 120),
    "recursive in a closure": (make_fib(), 10, 55),
    "mutually recursive": (make_even(), 10, True),
    "uses an import": (uses_import, 2.5, 2),
    "bound method": (Scale(3).times, 4, 12),
    "class method": (lambda _: Scale.name(), 0, "Scale"),
    "static method": (Scale.half, 3, 1.5),
    "callable object": (Scale(3), 4, -12),
    "class": (Scale, 2, Scale(2)),
    "method of a builtin": ("a-{}".format, 1, "a-1"),
    "partial": (functools.partial(pow, 2), 5, 32),
    "partial of a partial": (functools.partial(functools.partial(pow, 2), mod=7), 5, 4),
    "partial of a lambda": (functools.partial(lambda a, b: a - b, 10), 4, 6),
    "attrgetter": (operator.itemgetter(1), "abc", "b"),
    "wrapped": (functools.wraps(double)(lambda x: double(x) + 1), 3, 7),
    "lru_cache": (functools.lru_cache(double), 3, 6),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kind_of_function(shared_queue, kind):
    fn, argument, expected = KINDS[kind]
    assert shared_queue.submit(fn, argument).result(10) == expected
    assert list(shared_queue.map(fn, [argument] * 3)) == [expected] * 3


def test_results_of_generators_arrive_as_lists(shared_queue):
    def numbers(n):
        yield from range(n)

    assert shared_queue.submit(numbers, 3).result(10) == [0, 1, 2]
    assert shared_queue.submit(lambda: (i * i for i in range(3))).result(10) == [0, 1, 4]


def test_map_of_a_generator_function(shared_queue):
    def numbers(n):
        yield from range(n)

    assert list(shared_queue.map(numbers, range(3))) == [[], [0], [0, 1]]


def test_instances_of_own_classes_come_back(shared_queue):
    found = shared_queue.submit(lambda: Scale(4)).result(10)
    assert type(found) is Scale
    assert found.times(2) == 8


class TestNeverStale:
    def test_redefined_helper(self, shared_queue):
        # Cells of a notebook; this module itself may be installed, and then goes by its name.
        cells = {"__name__": "__main__"}
        exec("def helper(x): return x + 1\ndef calls_helper(x): return helper(x)", cells)
        calls_helper = cells["calls_helper"]
        assert shared_queue.submit(calls_helper, 1).result(10) == 2
        exec("def helper(x): return x - 1", cells)
        assert shared_queue.submit(calls_helper, 1).result(10) == 0
        assert list(shared_queue.map(calls_helper, [1, 2])) == [0, 1]

    def test_mutated_list(self, shared_queue):
        captured = [1]
        total = lambda: sum(captured)
        assert shared_queue.submit(total).result(10) == 1
        captured.append(10)
        assert shared_queue.submit(total).result(10) == 11
        captured[0] = 0
        assert shared_queue.submit(total).result(10) == 10

    def test_rebound_closure(self, shared_queue):
        n = 1
        read = lambda: n
        assert shared_queue.submit(read).result(10) == 1
        n = 2
        assert shared_queue.submit(read).result(10) == 2

    def test_changed_default(self, shared_queue):
        def read(x=1):
            return x

        assert shared_queue.submit(read).result(10) == 1
        read.__defaults__ = (2,)
        assert shared_queue.submit(read).result(10) == 2

    def test_changed_attribute_of_a_method_s_object(self, shared_queue):
        scale = Scale(2)
        assert shared_queue.submit(scale.times, 3).result(10) == 6
        scale.factor = 5
        assert shared_queue.submit(scale.times, 3).result(10) == 15

    def test_a_method_that_was_deleted_is_gone(self, make_queue):
        queue = make_queue("-deleted", workers=1)

        class Base:
            def run(self):
                return "base"

        class Sub(Base):
            def run(self):
                return "sub"

        call = lambda: Sub().run()
        assert queue.submit(call).result(10) == queue.submit(Sub().run).result(10) == "sub"
        assert queue.submit(lambda one: one.run(), Sub()).result(10) == "sub"
        del Sub.run
        assert queue.submit(call).result(10) == queue.submit(Sub().run).result(10) == "base"
        assert queue.submit(lambda one: one.run(), Sub()).result(10) == "base"
        Base.run = lambda _: "new"
        assert queue.submit(call).result(10) == queue.submit(Sub().run).result(10) == "new"

    def test_an_older_job_keeps_its_classes(self, make_queue, gate):
        queue, hold = make_queue("-older", workers=1), gate.hold

        class Base:
            step = 1

            def run(self):
                return self.step, "one"

        class Sub(Base):
            @staticmethod
            def again():
                return "one"

        def run(_):
            return hold(), Sub().run(), Sub.again()

        older = queue.map(run, range(3), chunksize=1)
        Base.step, Base.run, Sub.again = 2, lambda s: (s.step, "two"), staticmethod(lambda: "two")
        newer = queue.options(lane="high").map(run, range(3), chunksize=1)
        gate.open()
        assert newer.result(10) == [(None, (2, "two"), "two")] * 3
        assert older.result(10) == [(None, (1, "one"), "one")] * 3
        assert isinstance(queue.submit(Sub).result(10), Sub)

    def test_attributes_that_a_call_sets_on_a_class_stay_its_own(self, make_queue):
        queue = make_queue("-attributes", workers=1)

        class Model:
            count = 0

            def run(self):
                type(self).count += 1
                found = self.count, hasattr(Model, "extra")
                Model.extra = 1
                return found

        for _ in range(3):
            assert queue.submit(lambda: Model().run()).result(10) == (1, False)
            assert queue.submit(Model().run).result(10) == (1, False)
            assert queue.submit(lambda m: m.run(), Model()).result(10) == (1, False)

    def test_what_a_call_changes_stays_its_own(self, make_queue):
        queue = make_queue("-own", workers=1)
        captured = []

        def append(x):
            captured.append(x)
            return list(captured)

        assert queue.submit(append, 1).result(10) == [1]
        assert queue.submit(append, 2).result(10) == [2]
        assert captured == []

    def test_arguments_are_as_they_were_at_the_call(self, shared_queue, gate):
        argument = [1]
        future = shared_queue.submit(gate.hold, argument)
        argument.append(2)
        gate.open()
        assert future.result(10) == [1]


class TestImportsInside:
    """An import in a function gets what was sent with it."""

    @pytest.fixture
    def remote_worker(self, make_queue, queue_name, server_url, wait_until):
        """One that belongs to no kernel."""
        queue = make_queue(workers=0)
        command = [sys.executable, "-m", "nbstreamq", "worker", server_url, "-n", "1"]
        worker = subprocess.Popen([*command, "--queue", queue_name])
        wait_until(queue.workers, timeout=30, describe="the worker")
        yield
        worker.terminate()
        worker.wait(20)

    def notebook(self):
        cells = {"__name__": "__main__"}
        exec(
            "def version(_=None):\n    import tools\n    from tools import read\n"
            "    return tools.VERSION, read(), tools.read()",
            cells,
        )
        return cells["version"]

    def test_after_an_edit_while_an_older_job_runs(self, make_queue, beside, gate):
        queue = make_queue(workers=1)
        version, hold = self.notebook(), gate.hold
        beside("tools.py", "VERSION = 1\ndef read(): return VERSION")
        import tools

        def wait_and_read(item):
            return hold(), version()

        older = queue.map(wait_and_read, range(3), chunksize=1)
        beside("tools.py", "VERSION = 2\ndef read(): return VERSION")
        importlib.reload(tools)
        newer = queue.options(lane="high").map(version, range(3), chunksize=1)
        gate.open()
        assert newer.result(10) == [(2, 2, 2)] * 3
        assert older.result(10) == [(None, (1, 1, 1))] * 3

    def test_of_two_folders_that_have_the_same_names(
        self, run_script, remote_worker, queue_name, server_url, tmp_path
    ):
        for folder in ("one", "two", "one"):
            package = tmp_path / folder / "tools"
            package.mkdir(parents=True, exist_ok=True)
            (package / "__init__.py").write_text("from .parts import part\n")
            (package / "parts.py").write_text(f"def part(): return {folder!r}\n")
            (package / "later.py").write_text("from .parts import part\n")
            source = """
import sys
sys.path.insert(0, sys.argv[3])
import tools
from nbstreamq import TaskQueue

def f():
    import importlib, tools, tools.parts
    import tools.later  # only the worker imports this one
    return tools.part(), tools.parts.part(), tools.later.part()

with TaskQueue(sys.argv[1], sys.argv[2], workers=0) as q:
    print(q.submit(f).result(20))
"""
            printed = run_script(source, queue_name, server_url, str(tmp_path / folder))
            assert printed == f"{(folder,) * 3}\n"

    def test_packages_find_their_files(self, make_queue, beside):
        queue = make_queue(workers=1)
        beside("kit/__init__.py", "")
        beside("kit/data.txt", "found")
        import kit

        def read():
            import importlib.resources
            import importlib.util
            import pkgutil

            import kit

            return (
                importlib.resources.files(kit).joinpath("data.txt").read_text(),
                importlib.resources.files("kit").joinpath("data.txt").read_text(),
                pkgutil.get_data("kit", "data.txt"),
                importlib.util.find_spec("kit").name,
                kit.__spec__.origin == kit.__file__,
                [m.name for m in pkgutil.iter_modules(kit.__path__)],
            )

        expected = ("found", "found", b"found", "kit", True, [])
        assert queue.submit(read).result(10) == expected
        assert queue.submit(lambda: importlib.resources.files(kit)).result(10).is_dir()


class TestEditedFiles:
    """Workers have the module of the file as it is at the call, though they imported it before."""

    @pytest.fixture
    def project(self, tmp_path, monkeypatch):
        """``project(name, source)`` writes a file of a package that is installed as editable."""
        root = tmp_path / "project"
        info = tmp_path / "site" / "my_sims-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-sims\nVersion: 1\n")
        url = f'{{"url": "{root.as_uri()}", "dir_info": {{"editable": true}}}}'
        (info / "direct_url.json").write_text(url)
        for path in (tmp_path / "site", root / "src"):
            monkeypatch.syspath_prepend(str(path))
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{root / 'src'}")

        def write(name, source):
            file = root / "src" / "sims" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
            importlib.invalidate_caches()

        write("__init__.py", "from .model import Model, run\n")
        yield write
        for name in [n for n in sys.modules if n.partition(".")[0] == "sims"]:
            del sys.modules[name]

    def edit(self, project, number):
        project(
            "model.py",
            f"NUMBER = {number}\ndef run(_=None): return NUMBER\n"
            f"class Model:\n  def run(self): return {number}\n",
        )
        for name in ("sims.model", "sims"):  # as autoreload does
            if name in sys.modules:
                source = importlib.util.cache_from_source(sys.modules[name].__file__)
                Path(source).unlink(missing_ok=True)
                importlib.reload(sys.modules[name])

    def test_an_editable_package(self, project, make_queue):
        self.edit(project, 1)
        queue = make_queue()
        import sims

        def inside(_=None):
            from sims.model import NUMBER

            return NUMBER

        for number in (1, 2, 3):  # within a second, and of the same size
            self.edit(project, number)
            assert queue.submit(sims.run).result(10) == number
            assert queue.map(sims.run, range(20), chunksize=1).result(10) == [number] * 20
            assert queue.map(inside, range(20), chunksize=1).result(10) == [number] * 20
            assert queue.submit(sims.Model().run).result(10) == number
            assert queue.submit(lambda: [sims.run()]).result(10) == [number]
            assert type(queue.submit(sims.Model).result(10)) is sims.Model

    def test_a_module_that_only_tasks_import(self, make_queue, tmp_path):
        queue = make_queue()
        (tmp_path / "helping.py").write_text("from helped import NUMBER")

        def number(_=None):
            import sys

            if str(tmp_path) not in sys.path:
                sys.path.append(str(tmp_path))
            import helping

            return helping.NUMBER

        for expected in (1, 2, 3):
            (tmp_path / "helped.py").write_text(f"NUMBER = {expected}")
            assert queue.map(number, range(20), chunksize=1).result(10) == [expected] * 20
            assert queue.submit(number).result(10) == expected

    def test_an_edit_while_the_task_runs_that_imported_the_module(
        self, make_queue, tmp_path, gate, wait_until
    ):
        queue, hold = make_queue(workers=1), gate.hold
        (tmp_path / "helping.py").write_text("NUMBER = 1")

        def number(wait):
            import sys

            sys.path.append(str(tmp_path))
            import helping

            return wait and hold(), helping.NUMBER

        first = queue.submit(number, True)
        wait_until(lambda: gate.n_reached == 1)
        (tmp_path / "helping.py").write_text("NUMBER = 2")
        gate.open()
        assert first.result(10) == (None, 1)
        assert queue.submit(number, False).result(10) == (False, 2)


@pytest.fixture
def connection():
    # Python 3.13 warns of one that is not closed, in whichever test runs when it is collected.
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        yield connection


class TestUnpicklable:
    def test_argument_fails_at_the_call(self, shared_queue, connection):
        with pytest.raises(NotPicklable, match=r"sqlite3\.Connection") as caught:
            shared_queue.submit(len, {"rows": [1, connection]})
        assert "['rows'][1]" in str(caught.value)
        assert isinstance(caught.value, TypeError)

    def test_keyword_argument(self, shared_queue):
        with pytest.raises(NotPicklable, match="lock"):
            shared_queue.submit(dict, guard=threading.Lock())

    def test_closure_fails_at_the_call(self, shared_queue, connection):
        rows = list(range(1000))
        with pytest.raises(NotPicklable, match="`connection`") as caught:
            shared_queue.submit(lambda: connection.execute(rows))
        assert "sqlite3.Connection" in str(caught.value)
        assert "`rows`" in str(caught.value)

    def test_item_of_a_map(self, shared_queue):
        with pytest.raises(NotPicklable, match="lock"):
            shared_queue.map(str, [1, threading.Lock()])
        assert shared_queue.status().open_jobs == 0

    @pytest.mark.parametrize("name", [None, "j"], ids=["unnamed", "named"])
    def test_an_item_is_named_by_its_number_in_the_whole_map(self, shared_queue, name):
        items = [1, 2, 3, 4, threading.Lock(), 6]
        with pytest.raises(NotPicklable, match=r"item \[4\] of .*lock"):
            shared_queue.map(str, items, chunksize=3, name=name)
        if name:  # the same call may submit the rest
            shared_queue.attach(name).delete()

    def test_nothing_stays_open(self, shared_queue):
        with pytest.raises(NotPicklable):
            shared_queue.submit(str, threading.Lock())
        assert shared_queue.status().open_jobs == 0
        assert shared_queue.submit(abs, -1).result(10) == 1


async def wait_and_double(x):
    return 2 * x


class AsyncCall:
    async def __call__(self, x):
        return x

    async def method(self, x):
        return x


async def count_up(x):
    yield x


class TestAsync:
    @pytest.mark.parametrize(
        ("fn", "result"),
        [
            (wait_and_double, 2),
            (functools.partial(wait_and_double), 2),
            (AsyncCall(), 1),
            (AsyncCall().method, 1),
            (functools.partial(AsyncCall()), 1),
            (count_up, [1]),
        ],
    )
    def test_coroutine_functions_of_all_kinds(self, shared_queue, fn, result):
        assert shared_queue.submit(fn, 1).result(10) == result
        assert shared_queue.map(fn, [1]).result(10) == [result]
        assert shared_queue.starmap(fn, [(1,)]).result(10) == [result]
        assert shared_queue.task(fn)(1).result(10) == result

    def test_a_coroutine_as_result_is_told_what_to_do(self, make_queue, capfd):
        queue = make_queue(workers=1)
        with pytest.raises(ResultNotPicklable, match="Run it with `await` inside"):
            queue.submit(lambda: wait_and_double(1)).result(10)
        assert queue.submit(lambda: __import__("gc").collect()).result(10) >= 0
        assert "never awaited" not in capfd.readouterr().err

    def test_runs_inside_a_plain_function(self, shared_queue):
        def run(x):
            import asyncio

            return asyncio.run(wait_and_double(x))

        assert shared_queue.map(run, [1, 2]).result(10) == [2, 4]


SCRIPT = """
import sys
import beside
from nbstreamq import TaskQueue

class Point:
    def __init__(self, x):
        self.x = x
    def __add__(self, other):
        return type(self)(self.x + other.x)

def twice(point):
    return point + point

def shift(point):
    return Point(beside.add(point.x, STEP))

STEP = 10

if __name__ == "__main__":
    with TaskQueue(sys.argv[1], sys.argv[2], workers=1) as q:
        result = q.submit(twice, Point(4)).result(20)
        assert type(result) is Point
        print(result.x)
        print([p.x for p in q.map(shift, [Point(1), Point(2)])])
        STEP = 20
        print(q.submit(shift, Point(1)).result(20).x)
        beside.ADDEND = 100
        print(q.submit(beside.add, 1, 1).result(20))
"""

BESIDE = """
ADDEND = 0

def _plus(a, b):
    return a + b + ADDEND

def add(a, b):
    return _plus(a, b)
"""


def test_classes_of_main_and_modules_beside_the_script(
    run_script, tmp_path, server_url, queue_name
):
    (tmp_path / "beside.py").write_text(BESIDE)
    printed = run_script(SCRIPT, queue_name, server_url)
    assert printed.split("\n") == ["8", "[11, 12]", "21", "102", ""]
