"""The commands that look at queues, jobs and servers, and change them."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from argparse import Namespace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nbstreamq.cli import main, make_parser
from nbstreamq.cli.completion import complete
from nbstreamq.cli.metrics import make_http_server


@pytest.fixture
def run(capsys, monkeypatch, server_url):
    """``run("jobs", "list")`` runs a command that succeeds; returns what it printed."""
    monkeypatch.setenv("NBSTREAMQ_URL", server_url)

    def run(*words):
        capsys.readouterr()
        main(words)
        return capsys.readouterr().out

    return run


@pytest.fixture
def fail(run):
    """``fail("top")`` runs a command that exits with 1; returns what it says of it."""

    def fail(*words):
        with pytest.raises(SystemExit) as caught:
            run(*words)
        return str(caught.value.code)

    return fail


@pytest.fixture
def queue(shared_queue):
    """A queue with two workers, and no named jobs."""
    yield shared_queue
    for job in shared_queue.jobs():
        shared_queue.attach(job.name).delete()


@pytest.fixture
def sweep(queue):
    """A named job with five calls; the first one failed."""
    job = queue.map(lambda x: 60 // x, range(5), name="sweep")
    job.wait()
    return job


def test_jobs_are_listed_and_shown(run, sweep, queue):
    (listed,) = json.loads(run("jobs", "list", "--queue", queue.name, "--json"))
    shown = json.loads(run("jobs", "show", "sweep", "--queue", queue.name, "--json"))
    table = run("jobs", "show", "sweep", "--queue", queue.name)

    assert (listed["name"], listed["state"]) == ("sweep", "failed")
    assert (listed["done"], listed["failed"], listed["submitted"]) == (4, 1, 5)
    assert [e["item"] for e in shown["errors"]] == [0]
    assert "ZeroDivisionError" in shown["errors"][0]["error"]
    assert re.search(r"sweep +\S+ +failed +4/5 +1 ", table)
    assert "Next: `nbstreamq jobs retry sweep`" in table


@pytest.mark.parametrize("suffix", [".json", ".pickle", ".csv", ".parquet"])
def test_results_go_to_a_file(run, sweep, queue, tmp_path, suffix):
    path = tmp_path / f"results{suffix}"
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")

    said = run("jobs", "results", "sweep", "--queue", queue.name, "-o", str(path))

    assert "5 calls, 1 of them without a result" in said
    read = {".json": _read_json, ".pickle": _read_pickle, ".csv": _read_csv}.get(suffix)
    assert read is None or read(path) == [60, 30, 20, 15]


def _read_json(path):
    rows = json.loads(path.read_text())
    assert "ZeroDivisionError" in rows[0]["error"]
    return [row["value"] for row in rows[1:]]


def _read_pickle(path):
    error, *values = pickle.loads(path.read_bytes())
    assert type(error) is ZeroDivisionError
    return values


def _read_csv(path):
    return [int(float(line.split(",")[2])) for line in path.read_text().splitlines()[2:]]


def test_what_json_can_t_hold_is_said(fail, queue, tmp_path):
    queue.map(lambda x: {x}, [1], name="sets").wait()

    said = fail("jobs", "results", "sets", "--queue", queue.name, "-o", str(tmp_path / "x.json"))

    assert "a set" in said
    assert ".pickle" in said


def test_a_job_is_cancelled_retried_and_deleted(run, fail, queue, gate):
    where = ("--queue", queue.name)
    job = queue.map(gate.hold, range(50), name="held", chunksize=1)
    assert "Add --wait" in fail("jobs", "results", "held", *where, "-o", "x.json")

    assert re.search(r"Cancelled of job 'held': \d+ calls", run("jobs", "cancel", "held", *where))
    gate.open()
    job.wait()
    assert "Run again of job 'held': 0 calls" in run("jobs", "retry", "held", *where)
    assert "Deleted job 'held'" in run("jobs", "delete", "held", *where)
    assert "no job 'held'" in fail("jobs", "show", "held", *where)


def test_a_failed_call_is_listed_as_dead_and_runs_again(run, queue, sweep):
    letter = json.loads(run("dead", "list", "--queue", queue.name, "--json"))[-1]
    assert letter["can_retry"]
    assert "ZeroDivisionError" in letter["why"]

    said = run("dead", "retry", letter["id"], "--queue", queue.name)

    assert "part of job 'sweep'" in said
    again = queue.attach("sweep")
    again.wait()
    assert len(again.errors) == 1


def test_status_shows_lanes_and_workers(run, queue):
    queue.submit(abs, -1).result(20)

    found = json.loads(run("status", "--queue", queue.name, "--json"))
    text = run("status", "--queue", queue.name)

    assert len(found["queues"][0]["workers"]) == 2
    assert re.search(rf"{queue.name} +default +0 +0 +0 +\d", text)
    assert text.count(" idle ") + text.count(" busy ") == 2


def test_status_and_metrics_show_limits(run, queue):
    limit = queue.limit("api", concurrent=3, rate=100)

    def work():
        with limit:
            return 1

    queue.submit(work).result(20)

    assert re.search(rf"{queue.name} +api +3 +100/s +0 +0", run("status", "--queue", queue.name))
    labels = f'queue="{queue.name}",limit="api",state="waiting"'
    assert f"nbstreamq_limit_calls{{{labels}}} 0.0" in run("metrics", "--queue", queue.name)


def test_top_says_that_it_needs_a_terminal(fail):
    assert "`nbstreamq status`" in fail("top")


def test_top_draws_on_a_terminal_until_ctrl_c(server_url, queue):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "nbstreamq", "top", server_url, "--queue", queue.name]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as top:
        os.close(theirs)
        shown = b""
        while b"idle" not in shown:
            shown += os.read(ours, 10_000)
        top.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the terminal is gone with its last process
            while os.read(ours, 10_000):
                pass
    os.close(ours)
    assert top.returncode == 0
    assert b"default" in shown


def test_metrics_are_what_prometheus_reads(run, queue, sweep):
    families = {
        family.name: family
        for family in text_string_to_metric_families(run("metrics", "--queue", queue.name))
    }

    workers = families["nbstreamq_workers"].samples
    assert sum(sample.value for sample in workers) == 2
    assert all(sample.labels["queue"] == queue.name for sample in workers)
    items = {s.labels["state"]: s.value for s in families["nbstreamq_job_items"].samples}
    assert items == {"open": 0, "done": 4, "failed": 1, "cancelled": 0}
    assert families["nbstreamq_messages_settled"].type == "counter"
    assert families["nbstreamq_dead_letters"].samples[0].value >= 1
    assert all(family.documentation for family in families.values())


def test_metrics_are_served(server_url, queue):
    options = Namespace(listen=("127.0.0.1", 0), url=server_url, insecure=False, queue=queue.name)
    with make_http_server(options) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        port = http.server_address[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        http.shutdown()
        thread.join()

    assert "# TYPE nbstreamq_workers gauge" in text


class TestCompletion:
    def test_offers_commands_verbs_and_options(self):
        parser = make_parser()
        assert complete(parser, ["jo"]) == ["jobs"]
        assert complete(parser, ["jobs", "re"]) == ["results", "retry"]
        assert complete(parser, ["worker", "--qu"]) == ["--queue"]
        assert "--control-socket" not in complete(parser, ["worker", "--"])
        assert complete(parser, ["worker", "redis://h", "x"]) == []

    def test_works_in_bash(self, tmp_path):
        program = f"""
{script_of("bash", tmp_path)}
COMP_WORDS=(nbstreamq jobs l) COMP_CWORD=2; _nbstreamq; echo "${{COMPREPLY[@]}}"
COMP_WORDS=(nbstreamq jobs list --js) COMP_CWORD=3; _nbstreamq; echo "${{COMPREPLY[@]}}"
COMP_WORDS=(nbstreamq x) COMP_CWORD=1; _nbstreamq; echo "${{#COMPREPLY[@]}}"
"""
        assert output_of("bash", "-c", program).split() == ["list", "--json", "0"]

    @pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
    def test_works_in_fish(self, tmp_path):
        (tmp_path / "a file").touch()
        program = f"""
{script_of("fish", tmp_path)}
cd {tmp_path}
for line in 'jobs l' 'jobs list --js' 'dem' 'server ' 'worker a'
    complete -C "nbstreamq $line"
end
"""
        said = output_of("fish", "--no-config", "-c", program).splitlines()
        assert said == ["list", "--json", "demo", "start", "status", "stop", "a file"]

    @pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
    def test_works_in_zsh(self, tmp_path):
        (tmp_path / "a_file").touch()
        (tmp_path / ".zshrc").write_text(f"PS1='> '\n{script_of('zsh', tmp_path)}")
        with in_terminal(tmp_path, "zsh", "-i") as (write, read_until):
            read_until("> ")
            for typed, completed in [
                ("nbstreamq jobs l\t", "list "),
                ("--js\t", "--json "),
                ("--queue a_\t", "a_file "),
            ]:
                write(typed)
                read_until(completed)


def script_of(shell, folder):
    """Return what the shell reads to complete; the program is in `folder`."""
    program = folder / "nbstreamq"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m nbstreamq "$@"\n')
    program.chmod(0o755)
    script = output_of(program, "completion", shell)
    path = f"set -x PATH {folder} $PATH" if shell == "fish" else f"PATH={folder}:$PATH"
    return f"{path}\n{script}"


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


@contextlib.contextmanager
def in_terminal(folder, *command):
    """Run a program in a terminal; gives functions that type, and that read until a text comes."""
    ours, theirs = pty.openpty()
    options = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
    variables = {**os.environ, "ZDOTDIR": str(folder), "TERM": "dumb"}

    def read_until(text):
        shown = ""
        while text not in shown:
            assert select.select([ours], [], [], 20)[0], f"{text!r} is not in {shown!r}"
            shown += os.read(ours, 4096).decode()

    with subprocess.Popen(command, cwd=folder, env=variables, **options) as process:
        os.close(theirs)
        try:
            yield lambda text: os.write(ours, text.encode()), read_until
        finally:
            process.kill()
            os.close(ours)


def test_the_demo_runs_on_its_own_workers(run, client):
    said = run("demo")

    assert "The sum of the roots is 165.29" in said
    assert [*client.scan_iter("nbq2:{demo-*")] == []


def test_the_embedded_server_is_started_and_stopped(capsys, monkeypatch, short_folder):
    for variable in ("RUNTIME_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"NBSTREAMQ_{variable}", str(short_folder()))
    monkeypatch.setenv("NBSTREAMQ_SERVER_IDLE", "60")

    with pytest.raises(SystemExit):
        main(["server", "status"])
    assert "does not run" in capsys.readouterr().out
    main(["server", "start", "--memory", "50MB"])
    main(["status", "--json"])
    assert '"limit_bytes": 50000000' in capsys.readouterr().out
    capsys.readouterr()
    main(["server", "status", "--json"])
    assert json.loads(capsys.readouterr().out)["running"]
    main(["doctor"])
    assert "one started here and ran a call" in capsys.readouterr().out
    main(["server", "stop"])
    assert "stopped" in capsys.readouterr().out


def test_the_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    root = Path(__file__).parents[2]
    version = re.search(r'^version = "(.*)"', (root / "pyproject.toml").read_text(), re.M)[1]
    assert f"\nversion: {version}\n" in (root / "CITATION.cff").read_text()
    assert capsys.readouterr().out.startswith(f"nbstreamq {version}, Python 3.")
