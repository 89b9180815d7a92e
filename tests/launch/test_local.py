"""The supervisor of a kernel's local workers: started once, again when it dies, and stopped."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from nbstreamq import TaskQueue
from nbstreamq.errors import ServerError
from nbstreamq.home import here
from nbstreamq.launch.local import LocalWorkers
from nbstreamq.settings import Settings


@pytest.fixture
def settings():
    return Settings.from_environment()


@pytest.fixture
def new_local(server_url, queue_name, settings):
    """``new_local(session)``: local workers for a session of this kernel; left after the test."""
    made = []

    def make(session="s", url=server_url):
        made.append(
            LocalWorkers(url, queue_name, "secret", home=here(), session=session, settings=settings)
        )
        return made[-1]

    yield make
    for local in made:
        local.close(wait=True)


@pytest.fixture
def wait_for_workers(store, wait_until):
    """``wait_for_workers(n)``: process id of each worker -> that of its supervisor."""

    def wait(n):
        def found():
            workers = store.workers().values()
            return {w["pid"]: w["supervisor"] for w in workers} if len(workers) == n else None

        # {} is what is wanted where n is 0.
        return wait_until(lambda: (w,) if (w := found()) is not None else None, describe=f"{n}")[0]

    return wait


def test_it_starts_workers_and_stops_them(new_local, wait_for_workers):
    local = new_local()
    local.scale(2)
    processes = wait_for_workers(2)

    local.close(wait=True)

    assert wait_for_workers(0) == {}
    assert not any(map(psutil.pid_exists, {*processes, *processes.values()}))


def test_scaling_is_idempotent_and_goes_both_ways(new_local, wait_for_workers):
    local = new_local()
    local.scale(1)
    one = wait_for_workers(1)
    local.scale(1)
    local.scale(3)
    three = wait_for_workers(3)
    local.scale(1)

    assert set(one) <= set(three)
    assert len(set(three.values())) == 1
    assert set(wait_for_workers(1)) <= set(three)


def test_sessions_that_start_at_once_share_a_supervisor(new_local, wait_for_workers):
    sessions = [new_local(f"s{i}") for i in range(5)]
    threads = [threading.Thread(target=session.scale, args=(2,)) for session in sessions]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(set(wait_for_workers(2).values())) == 1


def test_the_last_session_that_leaves_stops_it(new_local, wait_for_workers):
    first, second = new_local("s1"), new_local("s2")
    first.scale(1)
    second.scale(1)
    processes = wait_for_workers(1)

    first.close(wait=True)
    assert wait_for_workers(1) == processes
    second.close(wait=True)

    assert wait_for_workers(0) == {}


def test_it_is_started_again_when_it_has_died(new_local, wait_for_workers, wait_until):
    local = new_local()
    local.scale(2)
    before = wait_for_workers(2)
    (supervisor,) = set(before.values())
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not any(map(psutil.pid_exists, before)), describe="the workers' end")

    after = wait_until(
        lambda: (w := wait_for_workers(2)) and not set(w) & set(before) and w, describe="new ones"
    )
    assert supervisor not in after.values()


def test_a_living_supervisor_is_not_replaced(new_local, wait_for_workers):
    local = new_local()
    local.scale(1)
    before = wait_for_workers(1)

    local._connection.end()  # as if it was lost

    local.scale(2)
    assert set(before) < set(wait_for_workers(2))


def test_a_session_leaves_although_its_connection_was_lost(new_local, wait_for_workers):
    local, other = new_local("s1"), new_local("s2")
    local.scale(1)
    other.scale(1)
    processes = wait_for_workers(1)
    local._connection.end()
    local.close(wait=True)
    assert wait_for_workers(1) == processes
    other.close(wait=True)
    assert wait_for_workers(0) == {}


def test_scaling_starts_it_again_when_it_has_died(new_local, wait_for_workers, wait_until):
    local = new_local()
    local.scale(1)
    before = wait_for_workers(1)
    os.kill(*before.values(), signal.SIGKILL)
    wait_until(lambda: not any(map(psutil.pid_exists, before)), describe="the workers' end")

    local.scale(2)

    wait_until(lambda: not set(wait_for_workers(2)) & set(before), describe="two new ones")


def test_a_supervisor_that_cannot_start_says_why(new_local, tmp_path):
    local = new_local(url=f"unix://{tmp_path}/nowhere")

    with pytest.raises(ServerError, match="did not start") as caught:
        local.scale(1)

    assert "nowhere" in str(caught.value)
    assert str(local.log) in str(caught.value)


def test_a_socket_that_a_dead_supervisor_left_is_no_obstacle(new_local, wait_for_workers):
    local = new_local()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(local.log.with_suffix(".sock")))
    # The file stays after its process has closed the socket.
    local.scale(1)

    wait_for_workers(1)


def test_only_the_user_may_come_in(new_local, settings):
    local = new_local()
    local.scale(1)

    assert settings.runtime_dir.stat().st_mode & 0o777 == 0o700
    assert local.log.with_suffix(".sock").stat().st_mode & 0o077 == 0


def answer_to(line, local):
    """Return what the control socket of `local` answers to `line`."""
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.settimeout(10)
        visitor.connect(os.fspath(local.log.with_suffix(".sock")))
        visitor.sendall(line)
        return visitor.recv(100)


def test_a_client_that_sends_nonsense_is_disconnected(new_local, wait_for_workers):
    local = new_local()
    local.scale(1)
    before = wait_for_workers(1)

    assert answer_to(b"what?\n[1]\n", local) == b""

    local.scale(1)
    assert wait_for_workers(1) == before


@pytest.mark.parametrize("line", [b"[1]\n", b'"x"\n', b'{"scale": "many"}\n', b'{"scale": -1}\n'])
def test_a_request_that_makes_no_sense_harms_nobody(new_local, wait_for_workers, line):
    local = new_local()
    local.scale(1)
    before = wait_for_workers(1)

    assert answer_to(line, local) == b""

    local.scale(1)
    assert wait_for_workers(1) == before


def test_no_command_line_shows_the_secret(server_url, queue_name, settings, wait_for_workers):
    local = LocalWorkers(
        server_url, queue_name, "Sesame", home=here(), session="s", settings=settings
    )
    local.scale(1)
    try:
        (supervisor,) = psutil.Process().children()[-1:]
        commands = [p.cmdline() for p in (supervisor, *supervisor.children(recursive=True))]
        assert not [command for command in commands if "Sesame" in " ".join(command)]
    finally:
        local.close(wait=True)


def test_another_process_starts_and_stops_only_workers_of_its_own(
    new_local, wait_for_workers, server_url, queue_name
):
    local = new_local()
    local.scale(2)
    ours = wait_for_workers(2)
    code = (
        "import sys; from nbstreamq import TaskQueue\n"
        "with TaskQueue(sys.argv[1], sys.argv[2], workers=1) as queue:\n"
        "    queue.submit(int).result()\n"
        "    print(len(queue.workers()))\n"
        "    queue.run(0)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, queue_name, server_url],
        capture_output=True,
        text=True,
        timeout=40,
        check=True,
        cwd=Path(__file__).parents[2],
    )

    assert done.stdout == "3\n"
    assert wait_for_workers(2) == ours


def test_old_logs_of_dead_supervisors_are_deleted(
    new_local, wait_for_workers, server_url, queue_name, settings
):
    other = LocalWorkers(
        server_url, f"{queue_name}-other", "secret", home=here(), session="s", settings=settings
    )
    other.scale(1)
    other.close(wait=True)
    os.utime(other.log, (0, 0))
    local = new_local()
    local.scale(1)
    wait_for_workers(1)
    assert not other.log.exists()
    assert local.log.exists()


def test_the_next_call_tries_again_to_start_it(server_url, queue_name, monkeypatch):
    with TaskQueue(queue_name, server_url, workers=1) as queue:
        with monkeypatch.context() as patch:
            patch.setattr("nbstreamq.launch.local.START_TIMEOUT", 0.0)
            with pytest.raises(ServerError, match="did not start"):
                queue.submit(abs, -1)
        assert queue.submit(abs, -2).result(20) == 2
