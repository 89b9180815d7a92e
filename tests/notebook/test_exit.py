"""What a kernel does with open calls when it is shut down."""

from __future__ import annotations

import queue as queues
import time

import pytest

pytest.importorskip("ipykernel")

from jupyter_client.manager import start_new_kernel

#: Seconds after which a kernel hangs.
HANGS = 30
CELL = """\
import time
from nbstreamq import TaskQueue
q = TaskQueue("exit", workers=1)
calls = [q.submit(time.sleep, 600) for _ in range(4)]
"""


def heard_on_standard_error(client, text):
    """Return whether a kernel that shuts down says `text` before it is gone."""
    end = time.monotonic() + HANGS
    while time.monotonic() < end:
        try:
            message = client.get_iopub_msg(timeout=HANGS)
        except queues.Empty:
            return False
        content = message["content"]
        if message["msg_type"] == "stream" and content["name"] == "stderr":
            return text in content["text"]
    return False


def test_a_kernel_drops_its_calls_and_says_so(jupyter_home, wait_until):
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(jupyter_home))
    try:
        assert client.execute_interactive(CELL)["content"]["status"] == "ok"
        client.shutdown()
        assert heard_on_standard_error(client, "dropped 4 open calls")
        wait_until(lambda: not manager.is_alive(), HANGS, "the kernel's end")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
