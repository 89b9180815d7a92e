"""What one server carries: its processor time for calls, chunks and workers that wait.

``python -m benchmarks.capacity`` writes its part of docs/performance.md.
"""

from __future__ import annotations

import selectors
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nbstreamq import TaskQueue
from nbstreamq.wire.keys import GROUP, LANES, RARE, Keys

from .calls import identity
from .local import ServerUse, own_server, workers_ready
from .machine import machine
from .page import put_between

ROOT = Path(__file__).parents[1]
QUEUE = "capacity"
N_WORKERS = (2, 8, 32, 64)
N_SIMULATED = (0, 10, 100, 300, 1000)
N_CALLS = 10_000
N_LONE = 300
N_ITEMS = 2_000_000
#: Seconds of a worker's wait, as in worker/loop.py.
IDLE_BLOCK = 30.0
Rows = Sequence[tuple[float, ...]]
#: Number of messages that the simulated workers handle.
N_PASSED = 500
#: Seconds of watching a server at rest.
REST = 5.0


def main() -> None:
    with own_server(), TaskQueue(QUEUE, workers=2) as queue:
        use = ServerUse(queue)
        real = [_real(queue, use, n) for n in N_WORKERS]
        queue.run(0)
        time.sleep(1.0)  # while it closes their connections
        rest = _at_rest(use, REST)
        renewal = _renewal(use, rest)
        simulated = [simulated(use, n) for n in N_SIMULATED]
        text = (
            f"{_tables(real, simulated, use.version())}\n\n{_model(real, simulated, rest, renewal)}"
        )
    print(text)
    put_between(ROOT / "docs" / "performance.md", "capacity", text)


def _tables(real: Rows, simulated: Rows, version: str) -> str:
    found = machine(ROOT)
    heads = (
        "a lone call, µs",
        "a call among many, µs",
        "a mapped item, ns",
        "a chunk of them, µs",
        "at rest, µs a second",
        "calls/s on these cores",
    )
    where = f"{found['processor']}, {found['cores']} cores for all, commit {found['commit']}"
    return "\n".join(
        [
            f"{where}. Processor time of the server, {version}, as it tells itself (`INFO cpu`).",
            "",
            f"| real workers | {' | '.join(heads)} |",
            "|---" * (len(heads) + 1) + "|",
            *(f"| {n} | {' | '.join(f'{value:,.0f}' for value in row)} |" for n, *row in real),
            "",
            "| simulated workers, waiting | a message to one of them, µs | their memory, MB |",
            "|---|---|---|",
            *(f"| {n:,} | {cost:,.0f} | {memory:,.1f} |" for n, cost, memory in simulated),
        ]
    )


def _model(real: Rows, simulated: Rows, rest: float, renewal: float) -> str:
    """Return what the figures mean for a server with many workers."""
    _, _, many, mapped, *_ = real[0]
    n, cost, memory = simulated[-1]
    each = (cost - simulated[0][1]) / n
    waits = renewal * n / IDLE_BLOCK
    busy = f"{1e6 / many:,.0f} single calls a second, or {1e3 / mapped:,.0f} million mapped items"
    shares = f"{waits / 1e4:.1f} % of the core; the server at rest uses {rest / 1e4:.1f} %"
    return f"""\
What follows from that, for one core of a server:

- **Busy workers** cost it only their calls: {busy}.
- **{n:,.0f} waiting workers** renew their waits every {IDLE_BLOCK:.0f} s, at {renewal:,.0f} µs:
  that is {shares}. They take {memory:,.0f} MB.
- **A message while they wait** costs {each:,.1f} µs more for each of them: with {n:,.0f} of them
  {1e6 / cost:,.0f} lone calls a second keep the server busy. Workers that are busy do not count."""


def _real(queue: TaskQueue, use: ServerUse, n: int) -> tuple[float, ...]:
    """Return what `n` real workers cost the server, in the order of the table."""
    workers_ready(queue, n)
    use.start()
    for i in range(N_LONE):
        queue.submit(identity, i).result()
    lone = use.seconds() / N_LONE * 1e6
    use.start()
    begun = time.perf_counter()
    futures = [queue.submit(identity, i) for i in range(N_CALLS)]
    for future in futures:
        future.result()
    rate = N_CALLS / (time.perf_counter() - begun)
    many = use.seconds() / N_CALLS * 1e6
    use.start()
    list(queue.map(identity, range(N_ITEMS)))
    mapped, chunk = use.seconds() / N_ITEMS * 1e9, use.seconds() / use.n_settled() * 1e6
    time.sleep(1.0)  # what is left of it
    rest = _at_rest(use, REST)
    _tell(f"{n} workers: {lone:.0f} {many:.0f} µs, {mapped:.0f} ns, {rest:.0f} µs/s, {rate:.0f}/s")
    return n, lone, many, mapped, chunk, rest, rate


def _at_rest(use: ServerUse, seconds: float) -> float:
    """Return the microseconds that the server uses in a second while nothing happens."""
    use.start()
    time.sleep(seconds)
    return use.seconds() / seconds * 1e6


def _renewal(use: ServerUse, rest: float) -> float:
    """Return the microseconds of a wait that ends without a task, and the question after it."""
    n, wait, seconds = 200, 1.0, 5.0
    keys = Keys(QUEUE)
    question = _command("HGET", keys.cancelled, "#")
    n_renewed = 0
    with waiting(use, keys, n, wait) as selector:
        use.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for key, _ in selector.select(wait):
                if b"*-1" in _socket(key).recv(65536):  # the end of a wait, and no answer
                    n_renewed += 1
                    _socket(key).sendall(question + key.data)
        used = use.seconds()
    return max(0.0, used * 1e6 - rest * seconds) / n_renewed


def simulated(use: ServerUse, n: int) -> tuple[float, ...]:
    """Return what a message costs the server while `n` workers wait, and their memory.

    They wait as workers do, each on a lane of its own and on the one that is always in use. Who
    gets the message acknowledges it and waits again. Without any, only the message is counted.
    """
    keys = Keys(QUEUE)
    lane = keys.lane("default")
    before = use.bytes()
    with waiting(use, keys, n) as selector:
        memory = (use.bytes() - before) / 1e6
        use.start()
        for _ in range(N_PASSED):
            message = use.client.xadd(lane, {"task": b"x" * 100})
            if n:
                _answer(selector, lane)
            else:
                use.client.xdel(lane, message)
        cost = use.seconds() / N_PASSED * 1e6
    _tell(f"{n} simulated workers: {cost:.0f} µs a message, {memory:.1f} MB")
    return n, cost, memory


@contextmanager
def waiting(
    use: ServerUse, keys: Keys, n: int, seconds: float = 60.0
) -> Iterator[selectors.BaseSelector]:
    """Open `n` connections that wait; each is registered with its waiting command."""
    block = ["COUNT", "1", "BLOCK", str(int(seconds * 1e3))]
    with selectors.DefaultSelector() as selector:
        for i in range(n):
            own = keys.lane(f"@simulated{i}")
            use.client.xgroup_create(own, GROUP, mkstream=True)
            lanes = [own, *(keys.lane(lane) for lane in LANES if lane not in RARE)]
            words = ["XREADGROUP", "GROUP", GROUP, f"simulated{i}", *block, "STREAMS", *lanes]
            wait = _command(*words, *([">"] * len(lanes)))
            worker = socket.socket(socket.AF_UNIX)
            worker.connect(use.path)
            worker.sendall(wait)
            selector.register(worker, selectors.EVENT_READ, wait)
        yield selector
        for key in list(selector.get_map().values()):
            _socket(key).close()
        for i in range(n):
            use.client.delete(keys.lane(f"@simulated{i}"))


def _answer(selector: selectors.BaseSelector, lane: str) -> None:
    """Read until a worker gets a message. It acknowledges and deletes it, and waits again."""
    while True:
        for key, _ in selector.select(5.0):
            worker = _socket(key)
            words = worker.recv(65536).split(b"\r\n")
            if b"task" not in words:
                continue  # what he acknowledged before
            # The reply: lane, then entries, each an id and its fields.
            entry = words[words.index(lane.encode()) + 4].decode()
            done = _command("XACK", lane, GROUP, entry) + _command("XDEL", lane, entry)
            worker.sendall(done + key.data)
            return


def _socket(key: selectors.SelectorKey) -> socket.socket:
    assert isinstance(key.fileobj, socket.socket)
    return key.fileobj


def _command(*words: str) -> bytes:
    parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
    return f"*{len(words)}\r\n{''.join(parts)}".encode()


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
