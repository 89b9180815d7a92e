"""Workers in other places, with a real sshd on loopback and a real Slurm: `make test-slurm`.

It needs root, and Debian's openssh-server, slurmctld, slurmd, slurm-client and munge. The two nodes
of the cluster are two slurmd on this machine.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nbstreamq import NbstreamqError, TaskQueue
from nbstreamq.launch.listening import Limits, start_listening
from nbstreamq.launch.slurm import SlurmLauncher
from tests.launch.conftest import hidden_socket, listening, read_file
from tests.ports import free_port
from tests.real_workers import gate

__all__ = ["gate", "hidden_socket", "listening", "read_file"]

# A wait for a job that waits itself says so.
pytestmark = pytest.mark.filterwarnings("ignore:waiting for:RuntimeWarning")

REPOSITORY = Path(__file__).parents[2]
HOST = socket.gethostname()
NODES = "n1", "n2"


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


@pytest.fixture(scope="module")
def folder(short_folder):
    return short_folder()


@pytest.fixture(scope="module", autouse=True)
def environment(folder):
    """What this process and the jobs have; `login` and this host lead to the sshd."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NBSTREAMQ_SECRET", raising=False)
        for variable in ("RUNTIME_DIR", "DATA_DIR", "MEMORY_DIR"):
            (folder / variable.lower()).mkdir(mode=0o700)
            patch.setenv(f"NBSTREAMQ_{variable}", str(folder / variable.lower()))
        patch.setenv("NBSTREAMQ_SILENCE", "2")
        patch.setenv("NBSTREAMQ_SERVER_IDLE", "30")
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        yield


@pytest.fixture(scope="module", autouse=True)
def sshd(folder, environment):
    port = free_port()
    for key in ("host", "key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
    known = (folder / "host.pub").read_text()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {known}")
    # The shell of a user may be talkative.
    (folder / "home").mkdir()
    (folder / "home" / ".bashrc").write_text("echo Welcome to the cluster\n")
    passed_on = ("PATH", "SLURM_CONF", "NBSTREAMQ_SILENCE", "NBSTREAMQ_SERVER_IDLE")
    given = " ".join(f"{name}={os.environ[name]}" for name in passed_on)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/key.pub\nPasswordAuthentication no\nUsePAM no\n"
        f"SetEnv {given} HOME={folder}/home NBSTREAMQ_DATA_DIR={folder}/login"
        f" NBSTREAMQ_RUNTIME_DIR={folder}/run\n"
    )
    (folder / "ssh_config").write_text(
        f"Host node login {HOST}\n HostName 127.0.0.1\n Port {port}\n IdentityFile {folder}/key\n"
        f" UserKnownHostsFile {folder}/known\n IdentityAgent none\n"
    )
    (folder / "ssh").write_text(
        f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n'
    )
    (folder / "ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "sshd.log")]
    )
    yield
    process.terminate()
    process.wait()


def slurm_conf(folder, ports):
    logs = f"SlurmctldLogFile={folder}/ctld.log\nSlurmdLogFile={folder}/slurmd-%n.log"
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={HOST} NodeAddr=127.0.0.1 Port={port} CPUs=4"
        for node, port in zip(NODES, ports[1:], strict=True)
    )
    return f"""
ClusterName=test
SlurmctldHost={HOST}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
{logs}
ProctrackType=proctrack/linuxproc
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
ReturnToService=2
{nodes}
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 PriorityTier=1
PartitionName=urgent Nodes=n1,n2 MaxTime=60 PriorityTier=9 PreemptMode=OFF
"""


@pytest.fixture(scope="module")
def slurmctld(folder, sshd, environment):
    """The controller's process, with two nodes that are idle."""
    (folder / "slurm.conf").write_text(slurm_conf(folder, [free_port() for _ in range(3)]))
    (folder / "state").mkdir()
    if subprocess.run(["munge", "-n"], check=False, capture_output=True).returncode:
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge", "munge")
        run("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged")
    daemons = [subprocess.Popen(["slurmctld", "-D"])]
    daemons += [subprocess.Popen(["slurmd", "-D", "-N", node]) for node in NODES]
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(subprocess.CalledProcessError):
            if run("sinfo", "-h", "-p", "main", "-o", "%T %D").split() == ["idle", "2"]:
                break
        time.sleep(0.2)
    else:
        pytest.fail((folder / "ctld.log").read_text()[-2000:])
    yield daemons[0]
    subprocess.run(["scancel", "--me"], check=False)
    for daemon in daemons[::-1]:
        daemon.terminate()
        daemon.wait()


@pytest.fixture
def queue(queue_name, monkeypatch):
    monkeypatch.setattr(SlurmLauncher, "look_every", 1.0)
    queue = TaskQueue(queue_name, workers=0)
    yield queue
    for units in queue._session.workers._units.values():
        units.stop(drain=False)
    queue.shutdown(cancel_futures=True)


def where():
    return os.environ.get("SLURMD_NODENAME", "")


def job_ids():
    return run("squeue", "--me", "-h", "-t", "RUNNING", "-o", "%i").split()


def test_ssh_leads_workers_of_a_real_sshd_to_the_embedded_server(queue, wait_until, monkeypatch):
    units = queue.run(2, on="ssh://node", python=sys.executable)

    assert queue.map(abs, range(-3, 0)).result(60) == [3, 2, 1]

    units.stop()
    wait_until(lambda: [u.state for u in units] == ["ended"], timeout=20, describe="their end")
    assert not Path(f"/tmp/nbstreamq-{next(iter(units)).id}.sock").exists()
    monkeypatch.setattr("nbstreamq.launch.ssh.new_id", lambda: "0123456789ab")
    with pytest.raises(NbstreamqError, match="has no Python"):
        queue.run(1, on="ssh://node", python="/nowhere")
    assert not Path("/tmp/nbstreamq-0123456789ab.sock").exists()


def test_jobs_run_calls_and_drain(queue, slurmctld, gate, wait_until):
    units = queue.run(2, on="slurm", walltime="5m")
    begun, opened = gate("begun"), gate("opened")
    future = queue.submit(lambda: (begun.open(), opened.wait(), where())[-1])
    wait_until(begun.is_open, timeout=60, describe="a job")

    units.stop()
    opened.open()

    assert future.result(30) in NODES
    wait_until(lambda: {u.state for u in units} == {"ended"}, timeout=30, describe="their end")
    assert {u.why for u in units} == {""}


def test_jobs_reach_a_server_by_tls(
    slurmctld, listening, read_file, hidden_socket, queue_name, wait_until
):
    settings, at = listening
    url, secret = read_file(start_listening(settings, at, Limits()))
    with hidden_socket(settings), TaskQueue(queue_name, url, secret=secret, workers=0) as queue:
        units = queue.run(2, on="slurm")
        assert queue.submit(where).result(60) in NODES
        units.stop()
        wait_until(lambda: not job_ids(), timeout=30, describe="their end")


def test_a_cancelled_job_is_replaced_and_its_call_runs_again(queue, slurmctld, gate, wait_until):
    units = queue.run(1, on="slurm", drain=1)
    begun, opened = gate("begun"), gate("opened")
    future = queue.submit(lambda: (begun.open(), opened.wait(60))[-1])
    wait_until(begun.is_open, timeout=60, describe="a job")
    (first,) = job_ids()

    run("scancel", first)

    wait_until(lambda: set(job_ids()) - {first}, timeout=30, describe="another job")
    opened.open()
    assert future.result(60) is None
    assert [u.state for u in units] == ["ended", "running"]


def test_a_preempted_job_is_replaced(queue, slurmctld, gate, wait_until):
    units = queue.run(1, on="slurm", drain=1)
    assert queue.submit(where).result(60) in NODES

    urgent = (
        "sbatch",
        "-p",
        "urgent",
        "-N2",
        "--exclusive",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 5",
    )
    run(*urgent)

    wait_until(lambda: "PREEMPTED" in repr(units), timeout=60, describe="the preemption")
    assert queue.submit(where).result(60) in NODES
    assert not list(Path("/tmp").glob(f"nbstreamq-{next(iter(units)).id}.*")), "it ended in time"
    assert not units.trouble


def test_a_job_ends_by_itself_before_its_wall_time(queue, slurmctld, wait_until):
    units = queue.run(1, on="slurm", walltime="1m", drain=5)
    assert queue.submit(where).result(60) in NODES

    wait_until(lambda: len(units) == 2, timeout=50, describe="the next job")

    assert next(iter(units)).why == "", "Slurm did not end it"
    assert queue.submit(where).result(60) in NODES


def test_a_misspelt_partition_is_said_in_one_line(queue, slurmctld):
    with pytest.raises(NbstreamqError, match=r"^Slurm: .*Invalid partition name[^\n]*$"):
        queue.run(1, on="slurm", partition="man")


def test_a_controller_that_hangs_changes_nothing(queue, slurmctld, monkeypatch):
    monkeypatch.setattr("nbstreamq.launch.slurm.TIMEOUT", 2.0)
    units = queue.run(2, on="slurm")
    assert queue.submit(where).result(60) in NODES
    slurmctld.send_signal(signal.SIGSTOP)
    try:
        time.sleep(5)  # several looks
        assert {u.state for u in units} == {"running"}
        assert queue.submit(where).result(60) in NODES
        assert len(units) == 2
    finally:
        slurmctld.send_signal(signal.SIGCONT)


def test_a_tunnel_that_is_cut_is_opened_again(queue_name):
    with TaskQueue(queue_name, "ssh://login", workers=1) as queue:
        assert queue.submit(abs, -1).result(60) == 1
        (tunnel,) = [
            child for child in psutil.Process().children() if "tunnel-" in " ".join(child.cmdline())
        ]

        tunnel.kill()

        assert queue.submit(abs, -2).result(60) == 2


def test_jobs_go_on_when_the_laptop_closes(slurmctld, folder, queue_name, wait_until):
    code = (
        "import os, sys, time; from nbstreamq import TaskQueue\n"
        "q = TaskQueue(sys.argv[1], 'ssh://login')\n"
        "q.run(2, on='slurm', walltime='5m', idle_timeout=5)\n"
        "q.submit(abs, 1).result(90)\n"
        "q.map(lambda x: (time.sleep(0.5), x)[1], range(8), chunksize=1, name='sweep')\n"
        "time.sleep(1)\n"
        "os.kill(os.getpid(), 9)"
    )
    laptop = subprocess.run(
        [sys.executable, "-c", code, queue_name], check=False, timeout=120, cwd=REPOSITORY
    )
    assert laptop.returncode == -9
    assert job_ids()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NBSTREAMQ_DATA_DIR", str(folder / "other_laptop"))
        with TaskQueue(queue_name, "ssh://login") as queue:
            left = job_ids()
            queue.run(2, on="slurm")
            assert job_ids() == left, "yesterday's jobs are used"
            job = queue.attach("sweep")
            assert job.result(60) == list(range(8))
            job.delete()

    wait_until(lambda: not job_ids(), timeout=30, describe="the idle jobs' end")
