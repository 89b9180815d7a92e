"""Large arguments, captured values and results: wherever they lie, they are as small ones."""

from __future__ import annotations

import gc
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nbstreamq import NbstreamqError, TaskQueue
from nbstreamq.objects.large_values import MIN_EXTERNAL_BYTES, ServerBackend
from nbstreamq.objects.mapped_files import MIN_FREE
from nbstreamq.objects.pickler import pickled
from nbstreamq.wire.keys import Keys

N = MIN_EXTERNAL_BYTES // 4  # of doubles: twice what is large


@pytest.fixture(scope="module")
def local():
    """A queue of the embedded server: its large values are files."""
    with TaskQueue("large", workers=2) as queue:
        queue.submit(abs, 1).result(30)
        yield queue


@pytest.fixture(params=["files", "server", "url"])
def anywhere(request, local, make_queue, tmp_path):
    """A queue whose large values lie in files, on the server, and at a URL."""
    if request.param == "files":
        return local
    store = f"{tmp_path}/store" if request.param == "url" else None
    return make_queue(workers=2, store=store)


def files_of(queue):
    """The files that hold a large value of the queue now."""
    folder = Path(queue._session.large.value_store.backend.folders[0])
    return [path for path in folder.iterdir() if path.is_file() and "@" not in path.name]


@pytest.fixture
def array():
    return np.random.default_rng(1).random(N)


def double(array):
    array *= 2
    return array


class TestAnywhere:
    def test_there_and_back(self, anywhere, array):
        before = array.copy()
        result = anywhere.submit(double, array).result(20)
        assert (result == 2 * before).all()
        assert (array == before).all()
        assert result.flags.writeable
        result[0] = 7

    def test_in_a_map(self, anywhere, array):
        inputs = [array + k for k in range(5)]
        for k, result in enumerate(anywhere.map(double, inputs)):
            assert (result == 2 * inputs[k]).all()

    def test_captured(self, anywhere, array):
        def total(k):
            return float(array[k])

        assert anywhere.map(total, range(64)).result(20) == list(map(float, array[:64]))

    def test_as_a_ref(self, anywhere, array):
        ref = anywhere.put({"a": array, "b": [1]})
        total = anywhere.submit(lambda d: d["a"].sum() + d["b"][0], ref)
        assert total.result(20) == array.sum() + 1
        assert anywhere.submit(lambda d: d["b"], anywhere.put({"b": 2})).result(20) == 2

    def test_as_a_result_that_another_call_takes(self, anywhere, array):
        future = anywhere.submit(double, anywhere.submit(double, array))
        assert (future.result(20) == 4 * array).all()

    def test_text_and_objects(self, anywhere):
        text = "x" * (3 * MIN_EXTERNAL_BYTES)
        assert anywhere.submit(lambda t: t + "y", text).result(20) == text + "y"
        words = [f"word {k}" for k in range(60_000)]
        assert anywhere.submit(sorted, words).result(20) == sorted(words)
        assert anywhere.map(len, [text] * 3).result(20) == [len(text)] * 3

    def test_many_medium_results_in_one_message(self, anywhere):
        found = anywhere.map(lambda k: bytes([k]) * 50_000, range(20), chunksize=20).result(20)
        assert found == [bytes([k]) * 50_000 for k in range(20)]

    def test_failed_items_run_again(self, anywhere, array, tmp_path):
        marker = tmp_path / "mended"

        def fail_first(array):
            if not marker.exists():
                raise ValueError("not yet")
            return array.sum()

        job = anywhere.map(fail_first, [array, array + 1])
        job.wait(20)
        assert len(job.errors) == 2
        marker.touch()
        assert job.retry_failed().result(20) == [array.sum(), (array + 1).sum()]

    def test_retries_and_replay(self, anywhere, array, tmp_path):
        marker = tmp_path / "failed"

        def fail_once(array):
            if not marker.exists():
                marker.touch()
                raise ValueError("once")
            return array[0]

        future = anywhere.options(retries=1).submit(fail_once, array)
        assert future.result(20) == array[0]
        assert future.replay() == array[0]

    def test_kept_results(self, anywhere, array):
        queue = anywhere.options(cache=True)
        first = queue.submit(np.negative, array).result(20)
        assert (queue.submit(np.negative, array).result(20) == first).all()

    def test_a_named_job_is_whole(self, anywhere, array, queue_name):
        ref = anywhere.put(array)

        def pick(k, reference):
            return array[k:], reference[k]

        job = anywhere.map(pick, range(3), [ref] * 3, name=queue_name)
        for k, (rest, one) in enumerate(job.result(20)):
            assert (rest == array[k:]).all()
            assert one == array[k]
        again = anywhere.attach(queue_name)
        assert (again.result(20)[2][0] == array[2:]).all()
        job.delete()

    def test_everywhere(self, anywhere, array):
        def set_up(values):
            return float(values[0] + array[0])

        found = anywhere.everywhere(set_up, array).result(20)
        assert set(found) == {2 * array[0]}


class TestFrames:
    def test_of_pandas(self, local):
        frame = pd.DataFrame({"x": np.arange(N), "y": np.arange(N) / 2, "t": ["a", "b"] * (N // 2)})

        def change(frame):
            frame.loc[0, "x"] = 5
            return frame

        result = local.submit(change, frame).result(20)
        assert frame.loc[0, "x"] == 0
        assert result.loc[0, "x"] == 5
        result.loc[1, "y"] = 7.0
        assert result.iloc[2:].equals(frame.iloc[2:])

    def test_of_arrow(self, local):
        pa = pytest.importorskip("pyarrow")
        table = pa.table({"x": np.arange(N)})
        assert local.submit(lambda t: t.slice(1), table).result(20).equals(table.slice(1))

    def test_of_torch(self, local):
        torch = pytest.importorskip("torch")
        tensor = torch.arange(N, dtype=torch.float64)

        def change(tensor):
            tensor[0] = 5
            return tensor

        result = local.submit(change, tensor).result(20)
        assert (tensor[0], result[0]) == (0, 5)
        result[1] = 7
        assert torch.equal(result[2:], tensor[2:])
        assert (
            len(pickled(tensor, min_external_bytes=MIN_EXTERNAL_BYTES).buffers) == 1
        )  # it is not in the pickle
        # What NumPy can't hold goes PyTorch's own way.
        for other in (tensor.bfloat16(), tensor.clone().requires_grad_(), tensor.to_sparse()):
            same = local.submit(lambda t: t, other).result(20)
            assert (same.dtype, same.requires_grad) == (other.dtype, other.requires_grad)
            assert torch.equal(same.to_dense(), other.to_dense())


class TestFiles:
    def test_one_for_each_content_as_long_as_somebody_may_need_it(self, local, array, wait_until):
        gc.collect()
        wait_until(lambda: not files_of(local), describe="no files of earlier tests")

        def pick(k):
            return float(array[k])

        futures = [local.submit(lambda a, k: float(a[k]), array, k) for k in range(10)]
        job = local.map(pick, range(64))
        ref = local.put(array)
        # A Ref's own pickle is the second.
        assert len(files_of(local)) == 2
        assert [f.result(20) for f in futures] == list(map(float, array[:10]))
        assert sum(job.result(20)) == pytest.approx(array[:64].sum())
        del futures, job
        gc.collect()
        assert len(files_of(local)) == 2
        future = local.submit(np.sum, ref)
        del ref
        assert future.result(20) == array.sum()
        del future
        gc.collect()
        wait_until(lambda: not files_of(local), describe="all files to be freed")

    def test_results_are_free_at_once_and_stay_as_they_are(self, local):
        array = np.random.default_rng(1).random(2 * MIN_FREE // 8)  # so large, files are used again
        results = [local.submit(double, array + k).result(20) for k in range(8)]
        for k, result in enumerate(results):
            assert (result == 2 * (array + k)).all()
        gc.collect()
        assert files_of(local) == []

    def test_small_ones_are_in_the_message(self, local):
        future = local.submit(np.sum, np.ones(100))
        assert files_of(local) == []
        assert future.result(20) == 100

    def test_nobody_takes_the_result_of_a_cancelled_call(self, local, array, gate, wait_until):
        def held(array, hold):
            hold()
            return array

        future = local.submit(held, array, gate.hold)
        wait_until(lambda: gate.n_reached, describe="the call to run")
        future.cancel()
        del future
        gate.open()
        assert local.submit(abs, -1).result(20) == 1
        wait_until(lambda: gc.collect() >= 0 and not files_of(local), describe="no files")

    def test_gone_with_the_queue(self, array):
        with TaskQueue("large-closed", workers=1) as queue:
            ref = queue.put(array)
            folder = Path(queue._session.large.value_store.backend.folders[0])
            assert queue.submit(np.sum, ref).result(20) == array.sum()
        assert not folder.exists()
        with TaskQueue("large-closed", workers=1) as other:
            error = other.submit(np.sum, ref).exception(20)
        assert isinstance(error, NbstreamqError)
        assert "the value of a Ref is no longer available" in str(error)
        assert "Submit the call again" in str(error)


class TestServer:
    def test_has_none_when_all_is_over(self, make_queue, array, client, wait_until):
        queue = make_queue(workers=1)
        pattern = Keys(queue.name).value("*").replace("{", "\\{")

        def keys():
            gc.collect()
            return list(client.scan_iter(pattern))

        ref = queue.put(array)
        assert (queue.submit(double, ref).result(20) == 2 * array).all()
        assert keys()
        del ref
        wait_until(lambda: not keys(), describe="no large values on the server")

    def test_keeps_parts(self, store, client, array, monkeypatch):
        monkeypatch.setattr("nbstreamq.objects.large_values.PART_BYTES", MIN_EXTERNAL_BYTES - 1)

        def tell(do, _):
            return do(store)

        place = ServerBackend(lambda question: question(store), tell, tell)
        data = memoryview(array).cast("B")
        address = place.write(data), data.nbytes
        pattern = store.keys.value("*").replace("{", "\\{")
        assert len(list(client.scan_iter(pattern))) == 3
        assert place.read(address) == data
        place.free(address)
        assert list(client.scan_iter(pattern)) == []
        assert place.read(address) is None


class TestUrl:
    def test_leaves_nothing(self, make_queue, array, tmp_path, wait_until):
        queue = make_queue(workers=1, store=f"file://{tmp_path}/store")
        future = queue.submit(double, array)
        assert (future.result(20) == 2 * array).all()
        # The sender's thread deletes the result's, right behind its reading.
        wait_until(
            lambda: len(list(tmp_path.rglob("store/*/*"))) == 1,
            describe="the argument's file, and no result's",
        )
        queue.shutdown()
        wait_until(lambda: not list(tmp_path.rglob("store/*")), describe="an empty folder")

    def test_refuses_what_somebody_else_wrote(self, make_queue, array, tmp_path):
        queue = make_queue(workers=0, store=f"file://{tmp_path}/store")
        future = queue.submit(pickle.dumps, "x" * 2 * MIN_EXTERNAL_BYTES)
        (path,) = tmp_path.rglob("store/*/*")
        path.write_bytes(os.urandom(path.stat().st_size))
        queue.run(1)
        error = future.exception(20)
        assert "an argument of dumps()" in str(error)
        assert "signature" in str(error)


def test_an_idle_worker_lets_go_of_a_dropped_ref(local, wait_until):
    workers, before = [w.pid for w in local.workers()], files_of(local)
    ref = local.put(np.ones(N))
    file = max(set(files_of(local)) - set(before), key=lambda path: path.stat().st_size)
    # Renamed when it is freed, it can still be told by its inode.
    inode = f" {file.stat().st_ino} "

    def n_mapped():
        return sum(inode in Path(f"/proc/{pid}/maps").read_text() for pid in workers)

    assert local.submit(np.sum, ref).result(20) == N
    assert n_mapped() == 1
    del ref
    gc.collect()
    wait_until(lambda: n_mapped() == 0, describe="the worker to unmap the value")


def test_a_shutdown_leaves_no_results_on_the_server(make_queue, client, queue_name):
    queue = make_queue()
    futures = [queue.submit(np.ones, N) for _ in range(3)]
    assert futures[0].result(20).sum() == N
    queue.shutdown()  # two were not read

    assert [*client.scan_iter(f"*{{{queue_name}}}:value:*")] == []
    assert [*client.scan_iter(f"*{{{queue_name}}}:results:*")] == []
