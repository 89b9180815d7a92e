"""No secret and no password is in what user code, a screen or a saved notebook can show."""

import io
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import psutil
import pytest
import redis
from rich.console import Console
from rich.traceback import Traceback

from nbstreamq import TaskQueue
from nbstreamq.secret import Address, Secret
from nbstreamq.settings import Settings
from nbstreamq.wire.addresses import open_client, url_of
from nbstreamq.wire.signing import Signer, load_secret
from nbstreamq.wire.trust import choose_secret

SECRET = "a-secret-of-4711-that-nobody-sees"
PASSWORD = "pass-4711"
ROOT = Path(__file__).parents[2]


def environments():
    """Return all that a task can read of the environment of its process and of its parent."""
    shown = [str(dict(os.environ)), str(sys.modules["posix"].environ)]
    for process in (psutil.Process(), psutil.Process().parent()):
        shown.append(Path(f"/proc/{process.pid}/environ").read_text(errors="replace"))
        shown.append(" ".join(process.cmdline()))
    shown.append(subprocess.run("env", capture_output=True, text=True, check=True).stdout)
    return "\n".join(shown)


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def guarded(start_server):
    """The url of a server with a password."""
    server = start_server("--requirepass", PASSWORD)
    return f"unix://:{PASSWORD}@{server.socket}"


# -- the environment ------------------------------------------------------------------------------


@linux_only
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("given", ["argument", "environment"])
def test_a_task_finds_no_secret_in_its_environment(guarded, queue_name, monkeypatch, method, given):
    monkeypatch.setenv("NBSTREAMQ_START_METHOD", method)
    if given == "environment":
        monkeypatch.setenv("NBSTREAMQ_SECRET", SECRET)
        monkeypatch.setenv("NBSTREAMQ_URL", guarded)
        queue = TaskQueue(queue_name, workers=1)
    else:
        queue = TaskQueue(queue_name, guarded, workers=1, secret=SECRET)
    with queue:
        shown = queue.submit(environments).result(30)
    assert queue_name in shown
    assert SECRET not in shown
    assert PASSWORD not in shown


@linux_only
def test_nor_does_one_of_workers_that_were_started_by_hand(guarded, queue_name, wait_until):
    env = os.environ | {"NBSTREAMQ_SECRET": SECRET, "NBSTREAMQ_URL": guarded}
    command = [sys.executable, "-m", "nbstreamq", "worker", "-n", "1", "--queue", queue_name]
    with (
        TaskQueue(queue_name, guarded, workers=0, secret=SECRET) as queue,
        subprocess.Popen(command, env=env, cwd=ROOT) as process,
    ):
        try:
            shown = queue.submit(environments).result(30)
            inner = queue.submit(lambda name: TaskQueue(name).submit(abs, -3).result(), queue_name)
            assert inner.result(30) == 3
        finally:
            process.terminate()
    assert queue_name in shown
    assert SECRET not in shown
    assert PASSWORD not in shown


@linux_only
def test_nor_where_the_secret_is_in_the_key_file(server_url, queue_name, monkeypatch):
    monkeypatch.delenv("NBSTREAMQ_SECRET")
    with TaskQueue(queue_name, server_url, workers=1) as queue:
        shown = queue.submit(environments).result(30)
    assert load_secret(Settings.from_environment()).reveal() not in shown


def test_nor_the_password_of_a_store(server_url, queue_name):
    pytest.importorskip("fsspec")
    store = f"memory://me:{PASSWORD}@host/values"
    with TaskQueue(queue_name, server_url, workers=1, store=store) as queue:
        shown, known = queue.submit(
            lambda: (environments(), str(Settings.from_environment().store))
        ).result(30)
    assert PASSWORD not in shown
    assert known == "memory://me:***@host/values"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_queue_without_arguments_works_in_a_task(guarded, queue_name, monkeypatch, method):
    monkeypatch.setenv("NBSTREAMQ_START_METHOD", method)

    def inner(name):
        return TaskQueue(name).submit(abs, -2).result()

    with TaskQueue(queue_name, guarded, workers=1, secret=SECRET) as queue:
        assert queue.submit(inner, queue_name).result(30) == 2


# -- reprs and tracebacks -------------------------------------------------------------------------


def test_reprs_say_nothing(monkeypatch):
    monkeypatch.setenv("NBSTREAMQ_SECRET", SECRET)
    monkeypatch.setenv("NBSTREAMQ_URL", f"redis://:{PASSWORD}@h:1/2")
    monkeypatch.setenv("NBSTREAMQ_STORE", f"ftp://me:{PASSWORD}@h/x")
    settings = Settings.from_environment()
    for shown in (repr(settings), str(settings), f"{settings}", str(vars(settings))):
        assert SECRET not in shown
        assert PASSWORD not in shown
        assert "redis://:***@h:1/2" in shown
    for secret in (Secret(SECRET), Address(f"redis://:{PASSWORD}@h")):
        with pytest.raises(TypeError):
            json.dumps(secret)
        with pytest.raises(TypeError, match="secret can't be pickled"):
            secret.__reduce__()


@pytest.mark.parametrize("secret", [3, b"x", ["x"], SECRET.encode()])
def test_a_secret_that_is_no_text_is_refused(server_url, secret):
    with pytest.raises(TypeError, match="secret is of type"):
        TaskQueue("x", server_url, secret=secret)


def closed_port():
    return f"redis://:{PASSWORD}@127.0.0.1:1/0"


FAILURES = {
    "no server": lambda url: TaskQueue("x", closed_port(), secret=SECRET),
    "wrong password": lambda url: TaskQueue(
        "x", url.replace("unix://:", "unix://:no-"), secret=SECRET
    ),
    "wrong secret": lambda url: (
        TaskQueue("x", url, secret="other", workers=0).shutdown(),
        TaskQueue("x", url, secret=SECRET, workers=0),
    ),
    "weak secret": lambda url: TaskQueue(
        "x", f"redis://:{PASSWORD}@db.example.org", secret=PASSWORD
    ),
    "no secret address": lambda url: TaskQueue("x", f"http://:{PASSWORD}@h", secret=SECRET),
    "no port": lambda url: TaskQueue("x", f"redis://:{PASSWORD}@h:port", secret=SECRET),
    "two servers": lambda url: TaskQueue("x", url, client=redis.Redis.from_url(url), secret=SECRET),
    "a server in hiding": lambda url: url_of(open_client(f"redis+sentinel://:{PASSWORD}@h/main")),
    "no cluster": lambda url: open_client(f"redis+cluster://:{PASSWORD}@127.0.0.1:1"),
    "no store": lambda url: TaskQueue(
        "x", url, secret=SECRET, store=f"nothing://:{PASSWORD}@h", workers=0
    ),
    "no name": lambda url: Signer(SECRET, "x\udcff"),
    "bytes": lambda url: TaskQueue("x", url, secret=SECRET.encode()),
    "choice": lambda url: choose_secret(
        Settings.from_environment(), closed_port().replace("127.0.0.1", "h"), secret=PASSWORD
    ),
}


def _ipython(error):
    from IPython.core.ultratb import VerboseTB

    return VerboseTB(color_scheme="NoColor").text(type(error), error, error.__traceback__)


def _rich(error):
    shown = io.StringIO()
    found = Traceback.from_exception(
        type(error), error, error.__traceback__, show_locals=True, locals_max_string=None
    )
    Console(file=shown, width=400).print(found)
    return shown.getvalue()


def _cgitb(error):
    cgitb = pytest.importorskip("cgitb")
    # Of an OSError it reads attributes that are not there.
    shown = Exception(f"{type(error).__name__}: {error}")
    return cgitb.text((Exception, shown, error.__traceback__))


def _plain(error):
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("show", [_ipython, _rich, _cgitb, _plain])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_traceback_with_variables_shows_none(guarded, failure, show):
    fail = FAILURES[failure]
    with pytest.raises(Exception) as caught:
        fail(guarded)
    error = caught.value
    # The frames of this file hold the password: they are the user's own.
    while error.__traceback__ and error.__traceback__.tb_frame.f_code.co_filename == __file__:
        error.__traceback__ = error.__traceback__.tb_next
    text = show(error)
    assert type(error).__name__ in text
    assert SECRET not in text
    assert PASSWORD not in text
