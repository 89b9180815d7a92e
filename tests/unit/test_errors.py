"""The exceptions: their tree, and that they survive a trip between processes."""

import builtins
import pickle
import re
from concurrent.futures import BrokenExecutor

import pytest

import nbstreamq
from nbstreamq import errors
from nbstreamq.errors import DeathCertificate, NbstreamqError, RemoteError, TaskError, WorkerLost

CLASSES = [
    c
    for c in vars(errors).values()
    if isinstance(c, type) and issubclass(c, Exception) and c.__module__ == errors.__name__
]
#: The standard library's exceptions that are not built in.
STANDARD = {"BrokenExecutor": BrokenExecutor, "PicklingError": pickle.PicklingError}
CERTIFICATE = DeathCertificate(worker="node4-812", cause="SIGKILL", item="7", output="last words")


def drawn_tree():
    """Return class -> (parent, rest of its line), as drawn in the module's docstring."""
    tree, path = {}, []
    for line in errors.__doc__.splitlines():
        if match := re.match(r"    ([│├└─ ]*)(\w+)(.*)", line):
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            tree[match[2]] = (path[depth - 1] if depth else None, match[3])
    return tree


def test_the_drawn_tree_holds_every_exception():
    assert set(drawn_tree()) == {c.__name__ for c in CLASSES}


def test_the_package_exports_every_exception():
    assert {c.__name__ for c in CLASSES} <= set(nbstreamq.__all__)


@pytest.mark.parametrize("error", CLASSES, ids=lambda c: c.__name__)
def test_each_exception_has_the_parent_that_is_drawn(error):
    parent, _ = drawn_tree()[error.__name__]
    assert parent == (error.__bases__[0].__name__ if error is not NbstreamqError else None)


@pytest.mark.parametrize("error", CLASSES, ids=lambda c: c.__name__)
def test_each_exception_is_also_the_standard_one_it_names(error):
    _, remark = drawn_tree()[error.__name__]
    named = re.findall(r"(?:; |also )(\w+)", remark)
    standard = [b.__name__ for b in error.__bases__[1:]]
    assert standard == named
    for name in named:
        assert issubclass(error, getattr(builtins, name, None) or STANDARD[name])


@pytest.mark.parametrize("error", CLASSES, ids=lambda c: c.__name__)
def test_each_exception_is_caught_as_the_base(error):
    assert issubclass(error, NbstreamqError)


@pytest.mark.parametrize("error", CLASSES, ids=lambda c: c.__name__)
def test_each_exception_pickles_with_its_text(error):
    again = pickle.loads(pickle.dumps(error("what happened")))
    assert type(again) is error
    assert str(again) == "what happened"


@pytest.mark.parametrize("error", [c for c in CLASSES if issubclass(c, TaskError)])
def test_each_task_s_exception_pickles_with_its_task(error):
    again = pickle.loads(pickle.dumps(error("what happened", task="s.1-7")))
    assert again.task == "s.1-7"


def test_a_lost_worker_s_certificate_pickles_and_is_told():
    again = pickle.loads(pickle.dumps(WorkerLost("lost", task="t", certificate=CERTIFICATE)))
    assert again.certificate == CERTIFICATE
    assert str(again).startswith("lost\nworker node4-812: SIGKILL")


def test_a_remote_error_pickles_with_type_and_traceback():
    error = RemoteError("boom", type_name="mod.Boom", traceback_text="Traceback ...")
    again = pickle.loads(pickle.dumps(error))
    assert (again.type_name, again.traceback_text) == ("mod.Boom", "Traceback ...")


def test_a_certificate_tells_only_what_is_known():
    assert str(DeathCertificate(worker="w", cause="exit code 3")) == "worker w: exit code 3"
    full = DeathCertificate(worker="w", cause="c", peak_memory_bytes=3 << 20, stack="File x")
    assert "peak memory: 3.1 MB" in str(full)
    assert "File x" in str(full)
