"""Workers on another machine, by the system's ssh: the other end is an sshd in this process."""

import asyncio
import gc
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import asyncssh
import psutil
import pytest

from nbstreamq import NbstreamqError, TaskQueue
from nbstreamq.notebook.html import html_of
from tests.real_workers import gate

__all__ = ["gate"]

pytestmark = [
    pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh on PATH"),
    # asyncssh does not await all that it has begun when a connection is cut.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

REPOSITORY = Path(__file__).parents[2]


class Sshd(asyncssh.SSHServer):
    """An ssh server that forwards unix sockets, and runs what it is told to."""

    allows_forwarding = True
    environment: dict[str, str]
    connections: ClassVar = set()
    sockets: list[str]

    def connection_made(self, conn):
        self.connection, self.sockets = conn, []
        self.connections.add(conn)

    def connection_lost(self, exc):
        self.connections.discard(self.connection)
        for path in self.sockets:
            Path(path).unlink(missing_ok=True)

    def unix_server_requested(self, listen_path):
        self.sockets.append(listen_path)
        return self.allows_forwarding

    @classmethod
    async def handle(cls, process):
        for path in process.channel.get_connection().get_owner().sockets:
            Path(path).chmod(0o600)  # as OpenSSH makes it
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_shell(
            process.command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=cls.environment,
            cwd=cls.folder,
        )
        await process.redirect(child.stdin, child.stdout, child.stderr)
        process.exit(await child.wait())


@pytest.fixture(scope="module")
def sshd(short_folder):
    """The ssh server: `config` is the path of the client's configuration for it."""
    folder = short_folder()
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(folder / "key")
    (folder / "key").chmod(0o600)
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    passed_on = ("PATH", "NBSTREAMQ_RUNTIME_DIR", "NBSTREAMQ_DATA_DIR", "NBSTREAMQ_MEMORY_DIR")
    Sshd.environment = {name: os.environ[name] for name in passed_on}
    Sshd.environment |= {"HOME": str(folder), "NBSTREAMQ_SILENCE": "1"}
    loop = asyncio.new_event_loop()

    async def listen():
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Sshd,
            server_host_keys=[host_key],
            process_factory=Sshd.handle,
            encoding=None,
            authorized_client_keys=asyncssh.import_authorized_keys(
                key.export_public_key("openssh").decode()
            ),
        )

    thread = threading.Thread(target=loop.run_forever, name="sshd", daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(10)
    known = host_key.export_public_key("openssh").decode()
    (folder / "known").write_text(f"[127.0.0.1]:{server.get_port()} {known}")
    Sshd.config = str(folder / "config")
    Path(Sshd.config).write_text(
        "Host node\n HostName 127.0.0.1\n User me\n"
        f" Port {server.get_port()}\n IdentityFile {folder}/key\n IdentityAgent none\n"
        f" UserKnownHostsFile {folder}/known\n"
    )
    # What a test adds to the user's options.
    (folder / "ssh").write_text(
        f'#!/bin/sh\nexec {shutil.which("ssh")} -F {Sshd.config} $NBSTREAMQ_TEST_SSH "$@"\n'
    )
    (folder / "ssh").chmod(0o755)
    # What a home folder may hold must hide no module of Python.
    (folder / "queue.py").write_text("raise ImportError('the wrong queue')")
    Sshd.loop, Sshd.folder = loop, folder
    yield Sshd
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    gc.collect()  # here the warnings that follow are expected


@pytest.fixture(autouse=True)
def user(sshd, monkeypatch):
    """The user's ssh, with the configuration for the node."""
    monkeypatch.setenv("PATH", f"{sshd.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("NBSTREAMQ_SILENCE", "1")
    monkeypatch.delenv("NBSTREAMQ_TEST_SSH", raising=False)


@pytest.fixture
def queue(server_url, queue_name):
    queue = TaskQueue(queue_name, server_url, workers=0)
    yield queue
    queue.shutdown(cancel_futures=True)


@pytest.fixture
def on_node(sshd):
    """The arguments of `q.run` for the node."""
    return {"on": "ssh://node", "python": sys.executable}


def n_alive(units):
    return sum(unit.n_alive for unit in units)


@pytest.fixture
def dead_socket():
    """A socket that ssh has left on the node for a unit that was killed."""
    path = Path("/tmp/nbstreamq-00000000dead.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    yield path
    path.unlink(missing_ok=True)


def test_workers_start_run_calls_and_stop(queue, on_node, sshd, dead_socket, wait_until):
    units = queue.run(2, max_memory=2**31, **on_node)
    assert "--max-memory 2147483648" in units.script()

    assert queue.size == 2, "workers that start count"
    assert queue.submit(os.getcwd).result(20) == str(sshd.folder)
    assert sorted(queue.map(abs, range(-9, 1)), key=abs) == list(range(10))
    wait_until(lambda: n_alive(units) == 2, describe="two workers")
    assert not dead_socket.exists()
    assert "2 of 2 workers on ssh://node\n  unit" in repr(units)
    assert "running" in html_of(units)
    commands = [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)]
    assert any("nbstreamq worker" in command for command in commands)
    assert not [command for command in commands if "secret " in command or '"secret"' in command]

    units.stop()

    wait_until(
        lambda: {unit.state for unit in units} == {"ended"}, timeout=30, describe="their end"
    )
    assert queue.workers() == []


def test_the_script_hides_secrets(server_url, queue_name, on_node):
    with TaskQueue(queue_name, server_url, workers=0, secret="Sesame" * 6) as queue:
        units = queue.run(1, **on_node)
        script = units.script()
    assert "-m nbstreamq worker --queue" in script
    assert "ssh://node" in script
    assert "Sesame" not in script


def test_uv_installs_the_packages_of_this_python_there(
    queue, sshd, uv, tmp_path, monkeypatch, wait_until
):
    changed = {"PATH": f"{uv.folder}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path)}
    monkeypatch.setattr(sshd, "environment", sshd.environment | changed)
    uv.set("hold", on=True)
    units = queue.run(1, on="ssh://node", env="sync")
    wait_until(lambda: uv.n_installs, describe="an install")
    assert "pending, 0 of 1 workers: uv installs" in repr(units)
    future = queue.submit(os.getenv, "SYNCED")
    uv.set("hold", on=False)
    assert future.result(30).startswith(str(tmp_path))


def fake_python(folder, code):
    path = folder / "python3"
    path.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}'\n")
    path.chmod(0o755)
    return str(path)


def test_a_place_that_refuses_says_why_in_one_line(queue, on_node, sshd, tmp_path, monkeypatch):
    def why(ssh="", **options):
        monkeypatch.setenv("NBSTREAMQ_TEST_SSH", ssh)
        with pytest.raises(NbstreamqError, match=r"^No workers start on ssh://node: ") as caught:
            queue.run(1, **{**on_node, **options})
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "ssh-add" in why(ssh="-o PubkeyAuthentication=no")
    assert "accept its key: ssh node" in why(ssh="-o UserKnownHostsFile=/dev/null")
    assert "Connection refused" in why(ssh="-o Port=1")
    assert "has no Python" in why(python="/nowhere/python")
    assert "has nbstreamq 0.0.1" in why(
        python=fake_python(tmp_path, 'import sys; sys.exit("has nbstreamq 0.0.1")')
    )
    assert "can't cd to /nowhere" in why(folder="/nowhere")
    assert "it ended with status 3: no module" in why(prologue=["echo no module", "exit 3"])
    sshd.allows_forwarding = False
    try:
        assert "AllowStreamLocalForwarding" in why()
    finally:
        sshd.allows_forwarding = True


def test_a_lost_connection_is_replaced_and_its_calls_run_again(
    queue, on_node, sshd, gate, wait_until
):
    units = queue.run(1, drain=1, **on_node)
    begun, opened = gate("begun"), gate("opened")

    def task():
        begun.open()
        opened.wait()
        return 1

    future = queue.submit(task)
    wait_until(begun.is_open, timeout=20, describe="the task")
    first = next(iter(units)).id
    for connection in list(sshd.connections):
        sshd.loop.call_soon_threadsafe(connection.abort)
    wait_until(lambda: len(units) == 2, timeout=20, describe="another unit")
    opened.open()

    assert future.result(30) == 1
    assert next(unit for unit in units if unit.id == first).state == "ended"


def test_workers_end_with_their_kernel(server_url, store, wait_until):
    code = (
        "import os, sys; from nbstreamq import TaskQueue\n"
        "q = TaskQueue(sys.argv[1], sys.argv[2], workers=0)\n"
        "q.run(1, on='ssh://node', python=sys.executable)\n"
        "q.submit(abs, 1).result()\n"
        "os._exit(0)"
    )
    command = [sys.executable, "-c", code, store.keys.queue, server_url]

    subprocess.run(command, check=True, timeout=40, cwd=REPOSITORY)

    wait_until(lambda: not store.workers(), timeout=30, describe="the workers' end")


def can_hide_folders():
    command = ["unshare", "-rm", "true"]
    return shutil.which("unshare") and subprocess.run(command, check=False).returncode == 0


@pytest.mark.skipif(not can_hide_folders(), reason="a process may not have mounts of its own")
def test_large_values_reach_workers_that_share_no_memory(on_node, tmp_path, sshd):
    python = tmp_path / "python"
    memory = os.environ["NBSTREAMQ_MEMORY_DIR"]
    python.write_text(
        f"#!/bin/sh\nexec unshare -rm sh -c 'mount -t tmpfs -o mode=700 none {memory};"
        f' exec {sys.executable} "$@"\' sh "$@"\n'
    )
    python.chmod(0o755)
    with TaskQueue(workers=0) as queue:
        large = queue.put(bytes(10**6))
        captured = bytes(range(250)) * 10**4

        queue.run(1, **{**on_node, "python": str(python)})

        assert queue.submit(len, large).result(30) == 10**6
        assert queue.map(lambda i: captured[i], range(3)).result() == [0, 1, 2]
        assert len(queue.submit(bytes.upper, captured).result(30)) == len(captured)
