"""With `--device`, each worker sees one accelerator of its own, or none."""

import os
import signal

import psutil
import pytest

from nbstreamq.errors import NbstreamqError
from nbstreamq.worker.devices import VARIABLES, Devices, read_devices

LISTED = """\
GPU 0: NVIDIA H200 (UUID: GPU-aa)
  MIG 1g.18gb     Device  0: (UUID: MIG-1)
  MIG 1g.18gb     Device  1: (UUID: MIG-2)
GPU 1: NVIDIA H200 (UUID: GPU-bb)
"""


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """``nvidia_smi(text)``: have the command of that name print this; no mask is inherited."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(text):
        command = tmp_path / "nvidia-smi"
        command.write_text(f"#!/bin/sh\ncat <<END\n{text}END\n")
        command.chmod(0o755)

    return make


def test_auto_lists_gpus_and_the_parts_of_those_that_have_some(nvidia_smi):
    nvidia_smi(LISTED)
    assert read_devices("gpu=auto") == ["MIG-1", "MIG-2", "GPU-bb"]
    assert read_devices("gpu=1, GPU-bb") == ["1", "GPU-bb"]
    nvidia_smi("no devices\n")
    with pytest.raises(NbstreamqError, match="lists no device"):
        read_devices("gpu=auto")


def test_an_inherited_mask_is_respected(nvidia_smi, monkeypatch):
    nvidia_smi(LISTED)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, MIG-7")
    assert read_devices("gpu=auto") == ["2", "MIG-7"]
    assert read_devices("gpu=MIG-7") == ["MIG-7"]
    with pytest.raises(ValueError, match="device 0 is hidden by CUDA_VISIBLE_DEVICES=2,MIG-7"):
        read_devices("gpu=0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(NbstreamqError, match="hides them all"):
        read_devices("gpu=auto")


@pytest.mark.parametrize("text", ["gpu", "gpu=", "gpu=0,,1", "tpu=auto", "gpu=0,0", ""])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"it must be|twice"):
        read_devices(text)


def test_workers_take_devices_in_order_and_leave_them_to_the_next():
    devices = Devices(["0", "1"], per_device=2)
    assert [devices.take() for _ in range(5)] == ["0", "0", "1", "1", ""]
    devices.give_back("1")
    devices.give_back("")
    assert (devices.take(), devices.take()) == ("1", "")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_replaced_worker_inherits_the_device(
    start, server_url, queue_name, store, new_queue, wait_until, method
):
    command = ("-m", "nbstreamq", "worker", server_url, "--queue", queue_name, "-n", "2")
    env = {"CUDA_VISIBLE_DEVICES": "3", "NBSTREAMQ_START_METHOD": method}
    start(*command, "--device", "gpu=auto", env=env)

    def seen(gone=0):
        """Process id of each worker -> what it sees; once there are two, without `gone`."""
        pids = {worker["pid"] for worker in store.workers().values()}
        if len(pids) < 2 or gone in pids:
            return None
        names = VARIABLES
        job = queue.everywhere(lambda: (os.getpid(), [os.environ[name] for name in names]))
        job.wait(30)
        return {pid: device for pid, device in job.result() if pid in pids}

    queue = new_queue(workers=0)
    before = wait_until(seen, timeout=30, describe="two workers")
    assert sorted(before.values()) == [["-1"] * 3, ["3"] * 3]
    (first,) = (pid for pid, device in before.items() if device[0] == "3")
    psutil.Process(first).send_signal(signal.SIGKILL)
    after = wait_until(lambda: seen(gone=first), timeout=30, describe="the next one")
    assert sorted(after.values()) == [["-1"] * 3, ["3"] * 3]
