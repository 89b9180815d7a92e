"""The command line: what it takes, what it says, and how it exits."""

import os
import re
import subprocess
import sys

import pytest

from nbstreamq import cli


def run(*arguments, **env):
    """Run ``python -m nbstreamq``; return its status and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "nbstreamq", *arguments],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "command",
    [[], ["worker"], ["doctor"], ["secret"], ["queues"], ["queues", "list"], ["queues", "delete"]],
)
def test_help_says_how_to_use_it(capsys, command):
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])

    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "usage: nbstreamq" in text
    assert not command or f"example:\n  nbstreamq {' '.join(command)}" in text


def test_help_names_all_options_but_those_of_our_own(capsys):
    with pytest.raises(SystemExit):
        cli.main(["worker", "--help"])

    text = capsys.readouterr().out
    options = {"--help", "--queue", "--lane", "--insecure", "--drain", "--lifetime"}
    options |= {"--idle-timeout", "--unit", "--max-tasks-per-worker", "--max-memory", "--device"}
    options.add("--per-device")
    assert set(re.findall(r"--[\w-]+", text)) == options
    assert "URL" in text
    assert "-n N" in text


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["work"],
        ["worker", "redis://a", "b"],
        ["worker", "--no-such"],
        ["worker", "--queue"],
        ["secret", "more"],
        ["--queue", "a", "worker"],
    ],
)
def test_wrong_arguments_exit_with_2_and_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)

    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("nbstreamq")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "text"),
    [
        *(("-n", n) for n in ("0", "-1", "1.5", "many", "", "nan", "1e3", "99999999999999999999")),
        *(
            (option, name)
            for option in ("--queue", "--lane")
            for name in ("", "a b", "-", "{a}", "a\n", "a\0", "\udcff", "x" * 10_000)
        ),
        ("--lane", "@worker"),
        ("--unit", "two words"),
        ("--lifetime", "0"),
        ("--max-tasks-per-worker", "0"),
        ("--per-device", "0"),
        *(("--max-memory", size) for size in ("", "4", "4X", "-4G", "nan")),
        *(("--drain", time) for time in ("", "soon", "-1", "nan", "inf", "1e30", "1h30", "m")),
        *(
            ("URL", url)
            for url in ("", "h", "http://h", "redis://", "redis://h/abc", "redis://h?foo=bar")
        ),
    ],
)
def test_a_wrong_value_exits_with_2_and_says_what_is_allowed(capsys, option, text):
    where = [text] if option == "URL" else ["unix:///nowhere", f"{option}={text}"]
    where = ["unix:///nowhere", "-n", text] if option == "-n" else where

    with pytest.raises(SystemExit) as caught:
        cli.main(["worker", *where])

    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nbstreamq")
    assert option in line
    assert re.search("must|no host|redis://host|it takes", line)
    assert len(line) < 500


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("URL", "http://:hush@h"),
        ("SILENCE", "-1"),
        ("SERVER_IDLE", "nan"),
        ("START_METHOD", "foo"),
        ("RUNTIME_DIR", "here"),
        ("STORE", "somewhere"),
    ],
)
def test_a_wrong_variable_exits_with_2_and_one_line(variable, value):
    status, out, err = run("doctor", **{f"NBSTREAMQ_{variable}": value})

    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert f"NBSTREAMQ_{variable} " in line
    assert "must" in line
    assert "hush" not in line


def test_a_server_that_is_not_there_exits_with_1_and_one_line(tmp_path):
    status, out, err = run("worker", f"unix://{tmp_path}/nowhere", "-n", "1")

    assert (status, out) == (1, "")
    assert err.startswith("nbstreamq: ")
    assert "Traceback" not in err
    assert "nowhere" in err


def test_another_secret_than_the_queues_exits_with_1(server_url, queue_name, store):
    store.check_secret()

    status, _, err = run(
        "worker", server_url, "-n", "1", "--queue", queue_name, NBSTREAMQ_SECRET="Sesame"
    )

    assert status == 1
    assert err.startswith("nbstreamq: ")
    assert "secret" in err
    assert "Sesame" not in err


def test_a_new_secret_is_printed_alone(capsys):
    cli.main(["secret"])
    cli.main(["secret"])

    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"[0-9a-f]{64}", first)
    assert first != second


def test_a_reader_that_has_seen_enough_is_no_fault():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "nbstreamq", "secret"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=30, check=False)
    os.close(write)

    assert (done.returncode, done.stderr) == (1, b"")


class TestDoctor:
    def test_a_sound_queue_exits_with_0(self, server_url, queue_name, store):
        store.check_secret()
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        store.join("node#1", {"host": "here", "python": python, "pid": 7, "lanes": ["default"]})

        status, out, err = run("doctor", server_url, "--queue", queue_name)

        assert (status, err) == (0, "")
        assert re.search(r"^server   (Redis|Valkey) \d+\.\d+", out, re.M)
        assert re.search(r"^ping     \d+\.\d+ ms$", out, re.M)
        assert re.search(r"^clock    (agrees with|\d+\.\d+ s \w+( of)?) this", out, re.M)
        assert f"{queue_name!r}: 1 worker, 0 messages waiting" in out
        assert "problem" not in out

    def test_a_queue_without_workers_exits_with_1_and_is_not_made(
        self, server_url, queue_name, client, store
    ):
        status, out, _ = run("doctor", server_url, "--queue", queue_name)
        assert status == 1
        assert f"problem  nothing can run: queue {queue_name!r} has no workers." in out
        assert not client.exists(store.keys.meta)

    def test_problems_are_listed_and_exit_with_1(self, server_url, queue_name, store, client):
        store.join("node#1", {"host": "here", "python": "3.99", "pid": 7, "lanes": ["default"]})
        client.xadd(store.keys.lane("default"), {"hello": "world"})
        store.take([], ["default"], "node#1", 1)

        status, out, err = run("doctor", server_url, "--queue", queue_name)

        assert (status, err) == (1, "")
        assert "worker   node#1: starting, Python 3.99, on here" in out
        assert re.search(r"^problem  workers run Python 3.99", out, re.M)
        assert re.search(r"^problem  refused .*: 1 task", out, re.M)

    def test_a_risky_server_exits_with_1(self, start_server):
        options = ("--save", "", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
        server = start_server(*options)

        status, out, _ = run("doctor", server.url)

        assert status == 1
        assert out.count("\nproblem ") == 3  # and it has no workers

    def test_another_secret_exits_with_1(self, server_url, queue_name, store):
        store.check_secret()

        command = ("doctor", server_url, "--queue", queue_name)
        status, _, err = run(*command, NBSTREAMQ_SECRET="Sesame")

        assert status == 1
        assert "secret" in err
        assert "Sesame" not in err

    def test_a_server_that_is_not_there_exits_with_1_and_one_line(self, tmp_path):
        status, out, err = run("doctor", f"unix://{tmp_path}/nowhere")

        assert (status, out) == (1, "")
        assert len(err.splitlines()) == 1


def test_help_is_quick_since_it_loads_nothing_slow():
    slow = {"redis", "msgspec", "asyncio", "rich", "http", "socket", "psutil"}
    code = (
        "import sys; from nbstreamq.cli import main\n"
        "try: main(['--help'])\n"
        f"except SystemExit: print({slow} & {{*sys.modules}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )

    assert done.stdout.splitlines()[-1] == "set()"


def test_queues_are_listed_and_deleted(server_url, store, queue_name, client):
    store.check_secret()
    store.open_job("sweep", "sweep:1", {"fn": "f"}, instead_of="")

    status, out, _ = run("queues", "list", server_url)
    line = next(line for line in out.splitlines() if queue_name in line)
    assert status == 0
    assert line.split() == [queue_name, "0", "0", "0", "1"]  # one named job

    status, out, _ = run("queues", "delete", queue_name, server_url)
    assert status == 0
    assert f"Deleted queue {queue_name!r}.\n" in out
    assert [*client.scan_iter(f"nbq2:{{{queue_name}}}*")] == []
    status, _, error = run("queues", "delete", queue_name, server_url)
    assert status == 1
    assert f"there is no queue {queue_name!r}" in error


def test_a_queue_with_workers_is_deleted_by_force_only(server_url, store, queue_name, client):
    store.check_secret()
    store.join("w1", {"host": "node4", "pid": 1})

    status, _, error = run("queues", "delete", queue_name, server_url)
    assert status == 1
    assert "1 worker on node4" in error
    assert [*client.scan_iter(f"nbq2:{{{queue_name}}}*")] != []

    assert run("queues", "delete", "--force", queue_name, server_url)[0] == 0
    assert [*client.scan_iter(f"nbq2:{{{queue_name}}}*")] == []


def test_deletion_leaves_queues_of_similar_names_alone(server_url, store, queue_name, client):
    store.check_secret()
    client.set(f"nbq2:{{{queue_name[:-1]}?}}:meta", 1, ex=60)

    assert run("queues", "delete", f"{queue_name[:-1]}?", server_url)[0] == 0
    assert client.exists(store.keys.meta)
