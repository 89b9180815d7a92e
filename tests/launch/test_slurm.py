"""Workers as jobs of Slurm, with small commands that behave as Slurm's do."""

import os
import re
import stat
import sys
from pathlib import Path

import pytest

from nbstreamq import NbstreamqError, TaskQueue
from nbstreamq.launch import slurm
from nbstreamq.launch.listening import Limits, start_listening

#: sbatch, squeue, scancel and ssh in one: jobs are processes, and a forwarded socket is a link.
_COMMANDS = """#!{python}
import os, signal, subprocess, sys, time
from pathlib import Path

name, jobs = Path(sys.argv[0]).name, Path({jobs!r})

def signal_job(job, number):
    pid = int((job / "pid").read_text())
    if not (job / "code").exists():
        os.kill(pid, number)

if name == "sbatch":
    script = sys.stdin.read()
    lines = [line for line in script.splitlines() if "#SBATCH --" in line and "=" in line]
    options = dict(line[10:].split("=", 1) for line in lines)
    if options.get("partition") == "nope":
        sys.exit("sbatch: error: invalid partition specified: nope\\nsbatch: error: Batch job"
                 " submission failed: Invalid partition name specified")
    job = jobs / str(len(list(jobs.glob("*"))) + 100)
    job.mkdir()
    (job / "script").write_text(script)
    print(job.name + ";cluster", flush=True)
    if (jobs.parent / "full").exists():
        sys.exit()
    if os.fork():
        sys.exit()
    os.setsid()
    os.environ["SLURM_SUBMIT_HOST"] = "here"
    log, null = open(options["output"], "ab"), subprocess.DEVNULL
    given = dict(stdin=null, stdout=log, stderr=log, cwd=options["chdir"])
    run = subprocess.Popen(["sh", job / "script"], **given)
    (job / "pid").write_text(str(run.pid))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)  # sbatch ends for its caller
    code = run.wait()
    (job / "code").write_text(str(code))
    os.killpg(0, signal.SIGKILL)
elif name == "squeue":
    if (jobs.parent / "hang").exists():
        time.sleep(60)
    if "--states=PENDING,RUNNING" in sys.argv:
        sys.exit()
    for job in sorted(jobs.glob("*")):
        if (job / "code").exists():
            code = (job / "code").read_text()
            print(job.name, "COMPLETED None" if code == "0" else "FAILED NonZeroExitCode")
        elif (job / "pid").exists():
            print(job.name, "RUNNING None")
        else:
            is_cancelled = (job / "cancelled").exists()
            print(job.name, "CANCELLED None" if is_cancelled else "PENDING Resources")
elif name == "scancel":
    for word in sys.argv[1:]:
        job = jobs / word
        if word.startswith("--"):
            pass
        elif (job / "pid").exists() and "--state=PENDING" not in sys.argv:
            signal_job(job, signal.SIGTERM)
        else:
            (job / "cancelled").touch()
elif name == "ssh":
    path, target = sys.argv[sys.argv.index("-L") + 1].split(":")
    os.chmod(target, 0o600)  # as that of the embedded server
    os.link(target, path)
    sys.stdin.read()
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The folder of the cluster's jobs."""
    jobs, commands = tmp_path / "jobs", tmp_path / "commands"
    for folder in (jobs, commands):
        folder.mkdir()
    for name in ("sbatch", "squeue", "scancel", "ssh"):
        (commands / name).write_text(_COMMANDS.format(python=sys.executable, jobs=str(jobs)))
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("NBSTREAMQ_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(slurm.SlurmLauncher, "look_every", 0.1)
    return jobs


@pytest.fixture
def queue(server_url, queue_name, cluster):
    queue = TaskQueue(queue_name, server_url, workers=0)
    yield queue
    queue.shutdown(cancel_futures=True)


def states(units):
    return [unit.state for unit in units]


def test_jobs_start_run_calls_and_end(queue, cluster, tmp_path, wait_until):
    units = queue.run(2, on="slurm", walltime="1h", directives=["--mem=1G"])

    assert queue.submit(os.getcwd).result(20) == str(Path.cwd())
    environment = queue.submit(dict, os.environ).result(20)
    wait_until(lambda: [u.n_alive for u in units] == [1, 1], timeout=20, describe="both jobs")
    assert sorted({worker.unit for worker in queue.workers()}) == sorted(u.id for u in units)
    assert not [name for name, value in environment.items() if "Sesame" in value]
    assert not list((tmp_path / "units").glob("*.secrets")), "a job that starts deletes its file"
    (script, _) = [(job / "script").read_text() for job in sorted(cluster.glob("*"))]
    assert {"#SBATCH --time=60:00", "#SBATCH --mem=1G", "#SBATCH --no-requeue"} <= {
        *script.splitlines()
    }
    assert "--signal=B:TERM@60" in units.script()

    units.stop()

    wait_until(lambda: states(units) == ["ended", "ended"], timeout=20, describe="their end")
    assert [unit.why for unit in units] == ["", ""], "they were told to"
    assert not [u.id for u in units if list(Path("/tmp").glob(f"nbstreamq-{u.id}.*"))]


def test_compute_nodes_reach_a_server_by_tls(
    listening, read_file, hidden_socket, cluster, queue_name, tmp_path, wait_until
):
    settings, where = listening
    url, secret = read_file(start_listening(settings, where, Limits()))
    with (
        hidden_socket(settings),
        TaskQueue(queue_name, url, secret=secret, workers=0) as queue,
    ):
        units = queue.run(1, on="slurm")
        assert queue.submit(abs, -1).result(30) == 1

        password = re.search(r"://:(.*)@", url)[1]
        written = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert written
        assert not [
            p for p in written if {password, secret} & {*re.split(r"[^\w-]", p.read_text())}
        ]
        assert "ssh" not in units.script(), "nothing has to be forwarded"
        units.stop()
        wait_until(lambda: states(units) == ["ended"], timeout=20, describe="its end")


def test_uv_installs_the_packages_of_this_python_there(queue, cluster, uv, monkeypatch):
    monkeypatch.setenv("PATH", f"{uv.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cluster.parent))

    queue.run(1, on="slurm", env="sync")

    assert queue.submit(os.getenv, "SYNCED").result(30).startswith(str(cluster.parent))


def test_what_slurm_refuses_is_said_in_one_line(queue, tmp_path):
    with pytest.raises(NbstreamqError, match=r"^Slurm: .*Invalid partition name") as caught:
        queue.run(2, on="slurm", partition="nope")

    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "units").glob("*.secrets"))


def test_pending_jobs_count_and_say_why(queue, cluster, tmp_path, monkeypatch, wait_until):
    (cluster.parent / "full").touch()
    units = queue.run(3, on="slurm")

    assert states(units) == ["pending"] * 3
    assert "Resources" in repr(units)
    assert "Resources" in repr(queue.workers())
    assert "Resources" in repr(queue.status())
    assert queue.size == 3
    files = list((tmp_path / "units").glob("*.secrets"))
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}

    monkeypatch.setattr(slurm, "TIMEOUT", 1.0)
    (cluster.parent / "hang").touch()
    wait_until(lambda: states(units) == ["unknown"] * 3, describe="a look that fails")
    assert queue.size == 3, "unknown never means gone"
    (cluster.parent / "hang").unlink()
    monkeypatch.setattr(slurm, "TIMEOUT", 15.0)

    units.stop()
    assert queue.size == 0
    assert len(list(cluster.glob("*/cancelled"))) == 3
    assert not list((tmp_path / "units").glob("*.secrets"))
