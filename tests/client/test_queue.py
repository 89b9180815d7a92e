"""Queues: where they are, who works for them, what they tell, and that they keep secrets."""

from __future__ import annotations

import copy
import os
import pickle
import socket
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler

import cloudpickle
import pytest

from nbstreamq import (
    NbstreamqError,
    NotPicklable,
    SecretMismatch,
    ServerUnreachable,
    TaskFuture,
    TaskQueue,
)
from nbstreamq.objects.pickling import dump
from nbstreamq.wire.addresses import open_client

PASSWORD = "open-sesame-42"


class TestAddress:
    def test_environment(self, server_url, queue_name, monkeypatch):
        monkeypatch.setenv("NBSTREAMQ_URL", server_url)
        with TaskQueue(queue_name, workers=1) as queue:
            assert server_url in repr(queue)
            assert queue.submit(abs, -1).result(10) == 1

    def test_ready_client(self, client, queue_name):
        with TaskQueue(queue_name, client=client, workers=1) as queue:
            assert list(queue.map(abs, [-1, -2])) == [1, 2]
        assert client.ping()

    @pytest.mark.parametrize("decode", [False, True])
    def test_ready_client_of_other_settings(self, server_url, queue_name, decode):
        import redis

        with (
            redis.Redis.from_url(server_url, decode_responses=decode, protocol=3) as client,
            TaskQueue(queue_name, client=client, workers=1) as queue,
        ):
            assert queue.submit(abs, -1).result(10) == 1

    def test_all_is_told_to_a_client_of_another_protocol(self, server_url, queue_name):
        import redis

        with (
            redis.Redis.from_url(server_url, protocol=3) as client,
            TaskQueue(queue_name, client=client, workers=1) as queue,
        ):
            job = queue.map(abs, [-1, -2], name="named")
            assert job.result(10) == [1, 2]
            assert len(queue.jobs()) == 1
            assert "default" in {lane.lane for lane in queue.status().lanes}
            job.delete()

    def test_url_and_client(self, client, server_url):
        with pytest.raises(ValueError, match="not both"):
            TaskQueue("x", server_url, client=client)

    def test_nobody_there(self, tmp_path):
        with pytest.raises(ServerUnreachable) as caught:
            TaskQueue("x", f"unix://{tmp_path}/nothing")
        assert isinstance(caught.value, ConnectionError)

    @pytest.mark.parametrize("name", ["", "a b", "{a}"])
    def test_impossible_names(self, server_url, name):
        with pytest.raises(ValueError, match=r"name is .*1 to 200 bytes"):
            TaskQueue(name, server_url)

    def test_another_secret(self, make_queue):
        make_queue(workers=0)
        with pytest.raises(SecretMismatch):
            make_queue(workers=0, secret="another")

    def test_two_queues_of_a_name_share_workers(self, make_queue, wait_until):
        first, second = make_queue(workers=1), make_queue(workers=0)
        pid = first.submit(os.getpid).result(10)
        assert second.submit(os.getpid).result(10) == pid


class TestWorkers:
    def test_start_at_the_first_call(self, make_queue):
        queue = make_queue(workers=1)
        assert queue.workers() == []
        pid = queue.submit(os.getpid).result(10)
        assert [w.pid for w in queue.workers()] == [pid]

    def test_none_with_a_url(self, server_url, queue_name):
        with TaskQueue(queue_name, server_url) as queue:
            queue.submit(int).cancel()
            assert queue.workers() == []

    def test_run_is_idempotent(self, make_queue, wait_until):
        queue = make_queue(workers=0)
        queue.run(2)
        wait_until(lambda: len(queue.workers()) == 2, describe="two workers")
        before = queue.workers()
        queue.run(2)
        assert queue.submit(abs, -1).result(10) == 1
        assert [w.pid for w in queue.workers()] == [w.pid for w in before]

    def test_run_starts_and_stops(self, make_queue, wait_until):
        queue = make_queue(workers=0)
        for n in (1, 3, 1, 0):
            queue.run(n)
            wait_until(lambda n=n: len(queue.workers()) == n, describe=f"{n} workers")

    def test_scaling_down_loses_nothing(self, make_queue, gate, wait_until):
        queue = make_queue(workers=2)
        job = queue.map(gate.hold, range(6), chunksize=1)
        wait_until(lambda: gate.n_reached == 2, describe="two tasks run")
        queue.run(1)
        gate.open()
        assert job.result(20) == list(range(6))
        assert gate.n_reached == 6

    def test_negative_number(self, shared_queue):
        with pytest.raises(ValueError, match="nworkers is -1: it must be None"):
            shared_queue.run(-1)


class TestStatus:
    def test_is_plain_data(self, shared_queue, server_url):
        assert shared_queue.submit(abs, -1).result(10) == 1
        status = shared_queue.status()
        assert status.queue == shared_queue.name
        assert status.server == server_url
        assert {"high", "default", "low"} <= {lane.lane for lane in status.lanes}
        assert status.trouble == ""
        (worker, _) = status.workers
        assert worker.host == socket.gethostname()
        assert worker.python.startswith("3.")
        assert "default" in worker.lanes
        assert status.workers == tuple(shared_queue.workers())

    def test_counts(self, make_queue, wait_until):
        queue = make_queue(workers=0)
        futures = [queue.submit(int) for _ in range(3)]
        futures += [queue.options(delay=60).submit(int), queue.options(lane="low").submit(int)]
        for future in futures[:3]:
            assert future.status.value == "waiting"

        def counts():
            lanes = {lane.lane: lane for lane in queue.status().lanes}
            return lanes["default"].waiting, lanes["default"].delayed, lanes["low"].waiting

        wait_until(lambda: counts() == (3, 1, 1), describe="all submits to reach the server")
        assert queue.status().open_jobs == 3  # calls in quick succession are one
        assert "lane default: 3 waiting, 0 running, 1 delayed" in repr(queue.status())

    def test_forgets_what_is_over(self, shared_queue):
        def slowly():
            yield 1
            assert shared_queue.submit(abs, -1).result(10) == 1
            yield 2

        assert list(shared_queue.map(abs, slowly())) == [1, 2]
        assert list(shared_queue.map(abs, [])) == []
        assert list(shared_queue.map(abs, iter([1, 2]), buffersize=1)) == [1, 2]
        assert shared_queue.everywhere(int).result(10) == [0, 0]
        assert shared_queue.status().open_jobs == 0

    def test_of_the_calls(self, shared_queue):
        def task():
            import sys

            print("one")
            print("two", file=sys.stderr)
            return 1

        future = shared_queue.submit(task)
        assert future.result(10) == 1
        assert future.status.value == "done"
        assert future.worker in {w.id for w in shared_queue.workers()}
        assert future.attempts == 1
        assert future.logs == "one\ntwo\n"
        assert future.timing["seconds"] < 5
        assert future.id in repr(future)
        assert "task" in repr(future)


class TestPasswords:
    @pytest.fixture
    def url(self, start_server):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.server = start_server(
            "--port", str(port), "--bind", "127.0.0.1", "--requirepass", PASSWORD
        )
        return f"redis://:{PASSWORD}@127.0.0.1:{port}/0"

    def test_are_never_shown(self, url, queue_name, wait_until):
        with TaskQueue(queue_name, url, workers=1, secret=PASSWORD + "-secret") as queue:
            task = queue.task(abs)
            future = task(-1)
            assert future.result(10) == 1
            failed = queue.submit(int, "x")
            job = queue.map(abs, [1])
            job.wait(10)
            shown = [
                queue,
                queue.status(),
                queue.workers(),
                future,
                job,
                task,
                failed.exception(10),
            ]
            shown.append(queue.options(retries=1))
            text = "\n".join(map(repr, shown)) + "\n".join(map(str, shown))
            assert PASSWORD not in text
            assert "127.0.0.1" in repr(queue)
            assert PASSWORD.encode() not in dump(queue, "a queue")

    @pytest.mark.filterwarnings("default:waiting for the server")
    def test_are_not_in_errors(self, url, queue_name, wait_until):
        with TaskQueue(queue_name, url, workers=0) as queue:
            self.server.stop()
            with pytest.raises(ServerUnreachable) as caught:
                queue.status()
            assert PASSWORD not in str(caught.value)
            with pytest.raises(ServerUnreachable) as caught:
                TaskQueue(queue_name, url)
            assert PASSWORD not in str(caught.value)
            assert "127.0.0.1" in str(caught.value)
            self.server.start()
            wait_until(lambda: not queue.status().trouble, describe="the server is back")

    def test_wrong_password(self, url, queue_name):
        with pytest.raises(NbstreamqError) as caught:
            TaskQueue(queue_name, url.replace(PASSWORD, "wrong-one"))
        assert "wrong-one" not in str(caught.value)

    def test_are_not_on_command_lines(self, url, queue_name):
        import psutil

        with TaskQueue(queue_name, url, workers=1, secret=PASSWORD + "-secret") as queue:
            assert queue.submit(abs, -1).result(10) == 1
            lines = [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)]
        assert any(queue_name in line for line in lines)
        assert not any(PASSWORD in line for line in lines if "requirepass" not in line)


class TestInTasks:
    def test_a_captured_queue_is_the_workers_own(self, shared_queue):
        queue = shared_queue

        def outer(n):
            return sum(queue.map(abs, range(-n, 0)))

        assert queue.submit(outer, 4).result(10) == 10

    def test_as_an_argument(self, shared_queue):
        def outer(queue):
            return queue.name, queue.submit(abs, -2).result()

        assert shared_queue.submit(outer, shared_queue).result(10) == (shared_queue.name, 2)

    def test_keeps_its_options(self, shared_queue, tmp_path):
        path = tmp_path / "failed"

        def fail_once():
            if not path.exists():
                path.touch()
                raise ConnectionError
            return 7

        view = shared_queue.options(retries=1)
        assert shared_queue.submit(lambda: view.submit(fail_once).result()).result(10) == 7

    def test_with_a_password(self, start_server, queue_name):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        start_server("--port", str(port), "--requirepass", PASSWORD)
        url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
        with TaskQueue(queue_name, url, workers=1) as queue:
            assert queue.submit(lambda: queue.submit(abs, -2).result()).result(10) == 2

    def test_another_queue_on_the_same_server(self, shared_queue, make_queue):
        other = make_queue("-other", workers=1)
        assert other.submit(int).result(10) == 0

        def outer():
            return other.name, other.submit(abs, -2).result()

        assert shared_queue.submit(outer).result(10) == (other.name, 2)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("a b",), "<TaskQueue '' on no server>"),
        ((2,), "<TaskQueue '' on no server>"),
        (("a", "redis://:hush@h/abc"), "<TaskQueue 'a' on redis://:***@h/abc>"),
        (("a", None, None), "<TaskQueue '' on no server>"),
    ],
)
def test_a_queue_whose_constructor_failed_has_a_repr(arguments, text):
    queue = object.__new__(TaskQueue)
    with pytest.raises((TypeError, ValueError)):
        queue.__init__(*arguments)
    assert repr(queue) == text


class TestPickling:
    """Only a task can have the queue: what other picklers wrote could not be read."""

    @pytest.mark.parametrize(
        ("kind", "make"),
        [
            ("TaskQueue", lambda q: q),
            ("TaskQueue", lambda q: [q.options(retries=1)]),
            ("TaskQueue", lambda q: q.task(abs)),
            ("TaskQueue", lambda q: q.submit),
            ("TaskFuture", lambda q: q.submit(int)),
            ("Job", lambda q: q.map(abs, [1])),
            ("Ref", lambda q: q.put(1)),
        ],
    )
    def test_is_refused_outside_of_a_call(self, shared_queue, kind, make):
        thing = make(shared_queue)
        for dumps in (pickle.dumps, cloudpickle.dumps, copy.deepcopy, ForkingPickler.dumps):
            with pytest.raises(TypeError, match=rf"^A {kind} can't be pickled\. ") as caught:
                dumps(thing)
            assert isinstance(caught.value, NbstreamqError)
        shared_queue.submit(abs, 1).result(10)

    def test_a_process_pool_says_so_and_goes_on(self, shared_queue):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            with pytest.raises(TypeError, match="A TaskQueue can't be pickled"):
                pool.submit(repr, shared_queue).result(20)
            assert pool.submit(abs, -1).result(20) == 1

    def test_a_job_in_a_call_is_refused_in_words_about_a_job(self, shared_queue):
        job = shared_queue.map(abs, [1])
        for fn, args in ((len, (job,)), (lambda: job, ())):
            with pytest.raises(NotPicklable, match=r"A Job can't be pickled\. Send its") as caught:
                shared_queue.submit(fn, *args)
            assert "socket" not in str(caught.value)
        assert job.result(10) == [1]


class TestDecorator:
    def test_calling_submits(self, shared_queue):
        @shared_queue.task
        def double(x, *, plus=0):
            """Twice as much."""
            return 2 * x + plus

        assert isinstance(double(3), TaskFuture)
        assert double(3, plus=1)() == 7
        assert double.__name__ == "double"
        assert double.__doc__ == "Twice as much."
        assert double.fn(3) == 6
        assert list(double.map([1, 2])) == [2, 4]

    def test_with_options(self, shared_queue):
        @shared_queue.task(retries=1, lane="high")
        def double(x):
            return 2 * x

        assert double(3)() == 6
        assert double.options(retries=2)(4)() == 8

    def test_inside_another_task(self, shared_queue):
        @shared_queue.task
        def inner(x):
            return x + 1

        @shared_queue.task
        def outer(x):
            return inner(x)() * 10

        assert outer(1)() == 20


def test_a_future_can_not_travel_by_itself(shared_queue):
    future = shared_queue.submit(int)
    with pytest.raises(NbstreamqError, match="TaskFuture can't be pickled"):
        pickle.dumps(future)


def test_nothing_stays_on_the_server(make_queue, server_url, queue_name):
    queue = make_queue(workers=1)
    assert list(queue.map(abs, range(100))) == list(range(100))
    queue.shutdown()
    with open_client(server_url) as client:
        left = {key.decode().rpartition("}:")[2] for key in client.scan_iter(f"*{queue_name}*")}
        assert not any(key.startswith(("events:", "session:", "delayed:")) for key in left), left
        for key in client.scan_iter(f"*{queue_name}*:lane:*"):
            assert client.xlen(key) == 0


def test_a_queue_that_was_shut_down_can_be_asked_and_keeps_no_connection(
    make_queue, client, wait_until
):
    queue = make_queue(workers=0)
    queue.shutdown()
    n_before = len(client.client_list())
    assert queue.status().lanes is not None
    assert len(queue.dead()) == 0
    wait_until(lambda: len(client.client_list()) <= n_before, describe="the connections closed")


def test_a_worker_that_took_more_than_it_can_do_soon_gives_it_back(make_queue):
    queue = make_queue(workers=2)
    queue.run(2)
    queue.map(abs, range(3000), chunksize=1).result(30)  # very short: it takes many at a time
    job = queue.map(time.sleep, [0.03] * 12, chunksize=1)
    job.wait(30)
    shares = Counter(r.worker for r in job._table.reports(0) if r.kind == "finished")
    assert len(shares) == 2
    assert min(shares.values()) >= 3, shares
