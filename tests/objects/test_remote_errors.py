"""Exceptions arrive as themselves, or at least as text."""

from __future__ import annotations

import copyreg
import importlib
import pickle
import sys
import traceback

import pytest

from nbstreamq.errors import DeathCertificate, RemoteError, WorkerLost
from nbstreamq.objects.error_pickler import MOST_FRAMES
from nbstreamq.objects.functions import FunctionPickler
from nbstreamq.objects.remote_errors import dump_error, load_error

RAISE = """
from nbstreamq.objects.functions import load_function
from nbstreamq.objects.remote_errors import dump_error
try:
    load_function(data).fn()
except BaseException as error:
    answer(dump_error(error, task='3f-1'))
"""


def caught(fn) -> BaseException:
    try:
        fn()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


def there_and_back(error: BaseException) -> BaseException:
    return load_error(dump_error(error, task="3f-1"))


@pytest.fixture
def raised_elsewhere(elsewhere):
    """Run a function in a fresh Python, and return the exception as it arrives here."""

    def run(fn) -> BaseException:
        return load_error(elsewhere(RAISE, FunctionPickler().dump(fn).data, raw=True))

    return run


def test_the_remote_traceback_shows_its_source_lines(notebook, raised_elsewhere):
    # Given a function in a cell that raises, through another one
    notebook.run("def g(x):\n    return 1 / x  # inner\ndef f():\n    return g(0)  # outer\n")
    # When its exception arrives
    error = raised_elsewhere(notebook["f"])
    # I expect the original type and the remote frames, and none of ours
    assert type(error) is ZeroDivisionError
    assert error.args == ("division by zero",)
    text = "".join(traceback.format_exception(error))
    assert "return 1 / x  # inner" in text
    assert "return g(0)  # outer" in text
    assert "^" not in text
    assert "nbstreamq" not in text


def test_own_frames_are_dropped_from_the_top(notebook):
    # Given an error that passed through our code on its way up
    error = caught(lambda: load_error(b"not a pickle"))
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    assert "nbstreamq" in files[-1]
    error.__traceback__ = error.__traceback__.tb_next.tb_next  # from our own frame on
    notebook.run("def f(): 1 / 0")
    inner = caught(notebook["f"]).__traceback__.tb_next
    error.__traceback__.tb_next = inner
    # When it arrives, I expect it to begin in the function
    arrived = there_and_back(error)
    assert [f.name for f in traceback.extract_tb(arrived.__traceback__)] == ["f"]


def test_the_chain_the_notes_and_the_attributes_arrive():
    def fn():
        try:
            try:
                raise KeyError("k")
            except KeyError:
                raise ValueError("v")  # noqa: B904
        except ValueError as error:
            final = OSError(2, "gone", "file.txt")
            final.extra = [1]
            final.add_note("a note")
            raise final from error

    error = there_and_back(caught(fn))
    assert type(error) is FileNotFoundError
    assert (error.errno, error.filename, error.extra) == (2, "file.txt", [1])
    assert error.__notes__ == ["a note"]
    assert isinstance(error.__cause__, ValueError)
    assert isinstance(error.__cause__.__context__, KeyError)
    assert error.__cause__.__traceback__ is not None
    assert error.__suppress_context__


def test_a_cycle_of_causes_arrives():
    one, two = ValueError(1), ValueError(2)
    one.__cause__, two.__cause__ = two, one
    error = there_and_back(one)
    assert error.__cause__.__cause__ is error


class WantsTwo(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")
        self.a, self.b = a, b


class Decorates(Exception):
    def __init__(self, text):
        super().__init__(f"sorry: {text}")


class OwnReduce(Exception):
    def __init__(self, a, *, b):
        super().__init__(a)
        self.b = b

    def __reduce__(self):
        return _make_own_reduce, (self.args[0], self.b)


def _make_own_reduce(a, b):
    return OwnReduce(a, b=b)


class OwnNew(Exception):
    def __new__(cls, a, b):
        return super().__new__(cls, a, b)

    def __init__(self, a, b):
        super().__init__(a)


class Gone(OSError):
    def __init__(self, *, path):
        super().__init__(2, "gone", path)


class OwnExit(SystemExit):
    def __init__(self, a, b):
        super().__init__(a)


@pytest.mark.parametrize("error", [
    WantsTwo(1, 2),
    Decorates("x"),
    OwnReduce(1, b=2),
    OwnNew(1, 2),
    Gone(path="p"),
    OwnExit(3, 4),
    SystemExit(3),
    KeyboardInterrupt(),
    StopIteration(5),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    SyntaxError("bad", ("file.py", 1, 2, "text")),
    ImportError("no", name="n", path="p"),
    NameError("no", name="n"),
    WorkerLost("lost", task="t", certificate=DeathCertificate(worker="w", cause="SIGKILL")),
    RemoteError("r", task="t", type_name="T", traceback_text="tb"),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_exceptions_with_all_kinds_of_constructors_arrive(error):
    copy = there_and_back(error)
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.args == error.args
    assert vars(copy) == vars(error)
    names = ("errno", "strerror", "filename", "code", "value", "lineno", "name", "path", "reason")
    for name in names:
        assert getattr(copy, name, None) == getattr(error, name, None)


def test_groups_arrive_with_the_tracebacks_of_their_members():
    inner = caught(lambda: 1 / 0)
    group = BaseExceptionGroup("g", [inner, ExceptionGroup("h", [ValueError(1)]), SystemExit(1)])
    copy = there_and_back(group)
    assert type(copy) is BaseExceptionGroup
    assert [type(e) for e in copy.exceptions] == [ZeroDivisionError, ExceptionGroup, SystemExit]
    assert copy.exceptions[0].__traceback__ is not None
    assert copy.message == "g"


def test_an_exception_defined_in_a_cell_is_caught_by_its_class(notebook, raised_elsewhere):
    notebook.run(
        "class MyError(Exception):\n"
        "    def __init__(self, a, b):\n        super().__init__(a)\n        self.b = b\n"
        "def f(): raise MyError(1, 2)"
    )
    before = dict(vars(notebook["MyError"]))
    error = raised_elsewhere(notebook["f"])
    assert type(error) is notebook["MyError"]
    assert (error.args, error.b) == ((1,), 2)
    assert dict(vars(notebook["MyError"])) == before


def test_an_exception_of_a_module_beside_the_notebook_is_caught(beside, notebook, raised_elsewhere):
    beside("helper.py", "class MyError(ValueError): pass\ndef f(): raise MyError(1)\n")
    notebook.run("from helper import f")
    assert type(raised_elsewhere(notebook["f"])) is importlib.import_module("helper").MyError


def test_an_exception_whose_class_is_missing_here_arrives_as_text(beside, notebook, elsewhere):
    # Given an exception of a module that is installed over there only
    script = (
        "import types\nmodule = types.ModuleType('only_there')\n"
        "exec('class MyError(Exception): pass', vars(module))\n"
        "sys.modules['only_there'] = module\n"
        "from nbstreamq.objects.remote_errors import dump_error\n"
        "answer(dump_error(module.MyError('why'), task='3f-1'))"
    )
    # When it arrives, I expect its text
    error = load_error(elsewhere(script, None, raw=True))
    assert type(error) is RemoteError
    assert error.type_name == "only_there.MyError"
    assert "why" in str(error)
    assert "only_there" in str(error)


def _fail(self, *args):
    raise RuntimeError("hostile")


def _exit(self, *args):
    raise SystemExit


METHODS = (
    "__str__",
    "__repr__",
    "__reduce__",
    "__reduce_ex__",
    "__getattribute__",
    "__setstate__",
)


@pytest.mark.parametrize("behaviour", [_fail, _exit, lambda *args: 3, lambda *args: "len"])
@pytest.mark.parametrize("method", METHODS)
def test_no_exception_makes_dumping_fail(method, behaviour):
    hostile = type("Hostile", (Exception,), {method: behaviour})
    data = dump_error(caught(lambda: (_ for _ in ()).throw(hostile("x"))), task="3f-1")
    assert isinstance(load_error(data), hostile | RemoteError)


def test_an_exception_that_reduces_to_another_thing_arrives_as_itself():
    hostile = type("Hostile", (Exception,), {"__reduce__": lambda self: (int, ())})
    error = there_and_back(hostile("x"))
    assert (type(error), error.args) == (hostile, ("x",))


def test_a_recursion_error_arrives_with_all_its_frames():
    def recurse():
        recurse()

    error = there_and_back(caught(recurse))
    assert type(error) is RecursionError
    assert len(traceback.extract_tb(error.__traceback__)) > 500


def test_an_error_that_passes_through_many_tasks_keeps_its_first_and_last_frames():
    def fail():
        raise ValueError

    def wait(error):
        raise error

    error = there_and_back(caught(fail))
    for _ in range(2 * MOST_FRAMES):
        error = there_and_back(caught(lambda: wait(error)))
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert names[-1] == "fail"
    assert names.count("...") == 1
    assert MOST_FRAMES < len(names) < MOST_FRAMES + 10


def test_a_long_chain_arrives_in_some_form():
    error: Exception = ValueError(0)
    for k in range(5000):
        successor = ValueError(k)
        successor.__cause__ = error
        error = successor
    assert isinstance(there_and_back(error), ValueError | RemoteError)


def test_an_error_deep_inside_other_errors_arrives_soon():
    # Given an error that is taken apart, as it refuses to be pickled, inside 30 groups
    class Unreducible(Exception):
        def __reduce__(self):
            raise RuntimeError

    error: Exception = Unreducible("innermost")
    for _ in range(30):
        error = ExceptionGroup("outer", [error])
    # When it is sent, I expect that no level doubles the work: it would never end
    copy = there_and_back(error)
    while isinstance(copy, ExceptionGroup):
        copy = copy.exceptions[0]
    assert str(copy) == "innermost"


def test_nothing_is_registered_for_all_pickles():
    before = dict(copyreg.dispatch_table)
    there_and_back(caught(lambda: 1 / 0))
    assert copyreg.dispatch_table == before
    with pytest.raises(TypeError):
        pickle.dumps(sys._getframe())
