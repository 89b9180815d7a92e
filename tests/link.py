"""A network of its own for some processes, and the cable to it."""

from __future__ import annotations

import os
import shutil
import subprocess

#: A program for Python, that becomes another Python in the network that is named.
_BEYOND = """
import os, sys
network, *arguments = sys.argv[1:]
os.execvp("ip", ["ip", "netns", "exec", network, sys.executable, *arguments])
"""


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(("ip", *words), check=check, capture_output=True)


class Link:
    """The network and the cable, which is plugged in; OSError where none can be made."""

    def __init__(self) -> None:
        if os.geteuid() or not shutil.which("ip"):
            raise OSError("only root can make networks, with iproute2")
        number = os.getpid() % 4096
        self.name, self.near, self.far = f"nbq{number}", f"nbqn{number}", f"nbqf{number}"
        subnet = f"10.213.{number // 16}"
        first = number % 16 * 16
        self.address = f"{subnet}.{first + 1}"
        near = (self.near, "type", "veth", "peer", "name", self.far, "netns", self.name)
        try:
            _ip("netns", "add", self.name)
            _ip("link", "add", *near)
            _ip("address", "add", f"{self.address}/28", "dev", self.near)
            _ip("-n", self.name, "address", "add", f"{subnet}.{first + 2}/28", "dev", self.far)
            _ip("-n", self.name, "link", "set", self.far, "up")
            self.plug()
        except subprocess.CalledProcessError as error:
            self.close()
            raise OSError(error.stderr.decode()) from error

    def plug(self) -> None:
        _ip("link", "set", self.near, "up")

    def cut(self) -> None:
        _ip("link", "set", self.near, "down")

    def beyond(self, *arguments: str) -> tuple[str, ...]:
        """Return arguments of a Python, with which it runs with `arguments` in the network."""
        return ("-c", _BEYOND, self.name, *arguments)

    def close(self) -> None:
        _ip("link", "delete", self.near, check=False)
        _ip("netns", "delete", self.name, check=False)
