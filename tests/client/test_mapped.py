"""Arrays that map a file: the task's array maps the same file."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest

from nbstreamq import NotPicklable


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "data.bin"
    np.arange(10_000.0).tofile(found)
    return found


def set_all(array, value):
    array[...] = value
    return array.shape, type(array).__name__, getattr(array, "mode", None)


#: Parts of an array, by what one writes in the brackets.
PARTS = {
    "all": lambda m: m,
    "a slice": lambda m: m[10:20],
    "every other row, backwards": lambda m: m[::-2, 3],
    "a column": lambda m: m[:, 1],
    "a transposed part": lambda m: m[5:9].T,
    "a plain view": lambda m: np.asarray(m)[2:4],
    "another type": lambda m: m[3].view(np.int64),
    "one element": lambda m: m[7, 7:8],
}


@pytest.mark.parametrize("offset", [0, 800, 40_008])
@pytest.mark.parametrize("part", PARTS)
def test_what_a_task_writes_is_in_the_file(part, offset, path, shared_queue):
    # Given a part of an array in a file, somewhere behind its beginning
    array = np.memmap(path, float, "r+", offset=offset, shape=(20, 20))
    mapped = PARTS[part](array)
    # When a task writes to it
    shape, kind, mode = shared_queue.submit(set_all, mapped, 7).result(20)
    # Then this part of the file has changed, and nothing else
    expected = np.arange(10_000.0)
    PARTS[part](expected[offset // 8 :][:400].reshape(20, 20))[...] = 7
    assert np.array_equal(np.fromfile(path), expected)
    # And the task has seen the array as it is
    assert shape == mapped.shape
    assert (kind, mode) == (type(mapped).__name__, getattr(mapped, "mode", None))


def test_a_new_file_is_not_emptied(tmp_path, shared_queue):
    array = np.memmap(tmp_path / "new", float, "w+", shape=(100,))
    array[:50] = 1
    job = shared_queue.map(set_all, [array[i : i + 10] for i in range(50, 100, 10)], [2] * 5)
    assert len(job.result(20)) == 5
    assert array.sum() == 150
    assert shared_queue.submit(lambda: (array.flush(), array.sum())[1]).result(20) == 150


def test_one_to_read_from_is_read_only(path, shared_queue):
    array = np.memmap(path, float, "r")
    assert shared_queue.submit(lambda: (array.flags.writeable, array[5])).result(20) == (False, 5)
    frozen = np.memmap(path, float, "r+")
    frozen.flags.writeable = False
    assert isinstance(shared_queue.submit(set_all, frozen, 3).exception(20), ValueError)


def test_copy_on_write_and_results_are_copies(path, shared_queue):
    array = np.memmap(path, float, "c")
    array[0] = -1  # only here, not in the file
    assert shared_queue.submit(lambda x: (set_all(x[1:], 0), x[0])[1], array).result(20) == -1
    result = shared_queue.submit(lambda: np.memmap(path, float, "r+")[:3]).result(20)
    result[...] = 9
    assert np.array_equal(np.fromfile(path), np.arange(10_000.0))


def test_a_file_without_a_name_is_refused_at_the_call(shared_queue):
    with tempfile.TemporaryFile() as file:
        array = np.memmap(file, float, "w+", shape=(10,))
        with pytest.raises(NotPicklable, match=r"a file without a name.*a copy"):
            shared_queue.submit(set_all, array, 3)


def test_a_file_that_is_missing_or_another_one_at_the_worker(path, shared_queue, gate):
    # Given a call that waits
    array, hold = np.memmap(path, float, "r+"), gate.hold
    held = [shared_queue.submit(hold) for _ in range(8)]
    future = shared_queue.submit(set_all, array, 3)
    # When the file goes before its turn
    path.rename(path.with_suffix(".old"))
    gate.open()
    # Then it fails, and says which file
    error = future.exception(20)
    assert isinstance(error, FileNotFoundError)
    assert str(path) in str(error)
    assert "numpy.array" in str(error)
    [one.result(20) for one in held]
    # And nothing is written to a file that takes its place
    array = np.memmap(path.with_suffix(".old"), float, "r+")
    path.touch()
    array.filename = str(path)
    error = shared_queue.submit(set_all, array, 3).exception(20)
    assert isinstance(error, OSError)
    assert "another file" in str(error)
