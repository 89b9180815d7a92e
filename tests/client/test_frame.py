"""A job as a table: a row for each item, whatever became of it."""

from __future__ import annotations

import sys
import time

import pytest

from nbstreamq import NbstreamqError

pandas = pytest.importorskip("pandas")

COLUMNS = [
    "item",
    "status",
    "value",
    "error",
    "worker",
    "attempts",
    "started",
    "seconds",
    "output",
]


def test_of_a_job_that_is_over(shared_queue):
    def work(x):
        print("working on", x)
        if x == 1:
            raise ValueError("one is bad")
        return x * 10

    begun = time.time()
    job = shared_queue.map(work, range(3))
    job.wait(10)
    frame = job.to_frame()
    assert list(frame.columns) == COLUMNS
    assert frame["item"].tolist() == [0, 1, 2]
    assert frame["status"].tolist() == ["done", "failed", "done"]
    assert frame["value"].tolist() == [0, None, 20]
    assert frame["error"].tolist() == [None, "ValueError: one is bad", None]
    assert frame["worker"].tolist() == [job[i].worker for i in range(3)]
    assert frame["attempts"].tolist() == [1, 1, 1]
    assert frame["output"].tolist() == [f"working on {x}\n" for x in range(3)]
    assert str(frame["started"].dt.tz) == "UTC"
    assert abs(frame["started"].dt.as_unit("ns").astype("int64") / 1e9 - begun).max() < 60
    assert (frame["seconds"] >= 0).all()


def test_of_a_job_that_goes_on(make_queue, gate, wait_until):
    queue = make_queue(workers=1)
    job = queue.map(gate.hold, ["a", "b"], chunksize=1)
    wait_until(job[0].running, describe="the first item to run")
    frame = job.to_frame()
    assert frame["status"].tolist() == ["running", "waiting"]
    assert frame["value"].tolist() == frame["error"].tolist() == [None, None]
    assert frame["worker"].tolist() == [job[0].worker, None]
    assert frame["attempts"].tolist() == [1, 0]
    assert frame["started"].isna().tolist() == [False, True]
    assert frame["seconds"].isna().all()
    job.cancel()
    frame = job.to_frame()
    assert frame["status"].tolist() == ["cancelled"] * 2
    assert frame["seconds"].isna().all()


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2], "int64"),
        ([0.5, 2.0], "float64"),
        ([True, False], "bool"),
        ([1, 2.5], "object"),
        ([2**70, 1], "object"),
        (["a", "b"], "object"),
        ([[1, 2], [3, 4]], "object"),
        ([None, 1], "object"),
    ],
)
def test_values_stay_what_they_are(shared_queue, values, dtype):
    job = shared_queue.map(lambda x: x, values)
    job.wait(10)
    frame = job.to_frame()
    assert frame["value"].tolist() == values
    assert frame["value"].dtype == dtype


def test_values_may_be_arrays(shared_queue):
    numpy = pytest.importorskip("numpy")
    job = shared_queue.map(numpy.full, [(2, 2)] * 3, range(3))
    job.wait(20)
    assert [v.sum() for v in job.to_frame()["value"]] == [0, 4, 8]


def test_attempts_are_counted(shared_queue):
    job = shared_queue.options(retries=1).map(lambda x: 1 / x, [0])
    job.wait(10)
    assert job.to_frame()["attempts"].tolist() == [2]


def test_an_error_whose_text_fails(shared_queue):
    class Mute(Exception):
        def __str__(self):
            raise SystemExit

    def fail(x):
        raise Mute

    job = shared_queue.map(fail, [0])
    job.wait(10)
    assert "Mute" in job.to_frame()["error"][0]


def test_of_an_empty_job(shared_queue):
    frame = shared_queue.map(abs, []).to_frame()
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 0


def test_of_many_items_is_quick(shared_queue):
    job = shared_queue.map(abs, range(200_000))
    job.wait(30)
    frame = job.to_frame()
    assert frame["value"].sum() == sum(range(200_000))
    assert (frame["status"] == "done").all()


def test_without_pandas(shared_queue, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(NbstreamqError, match="pip install pandas"):
        shared_queue.map(abs, []).to_frame()
