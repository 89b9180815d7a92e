"""A task that runs again goes on from the last state that it has stored."""

import os
import signal
import time

import pytest

from nbstreamq import NotPicklable, SignatureError, checkpoint, resume


def count_to_five(folder):
    """Count, and die or raise at 2 and 4 when it comes there first; return where it began last."""
    begun = resume(0)
    for k in range(begun, 5):
        if k in (2, 4) and not (folder / str(k)).exists():
            (folder / str(k)).touch()
            if folder.name == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError(k)
        checkpoint(k + 1)
    return begun


@pytest.fixture
def states(client, store):
    """``states()``: how many states the server holds."""

    def count():
        pattern = store.keys.checkpoints("*").replace("{", "[{]")
        return sum(client.hlen(key) for key in client.scan_iter(pattern))

    return count


@pytest.mark.parametrize("end", ["dies", "raises"])
def test_the_next_attempt_goes_on(one_worker, tmp_path, end, states, wait_until):
    folder = tmp_path / end
    folder.mkdir()

    job = one_worker.options(retries=2).map(count_to_five, [folder, folder])

    assert job.result(30) == [4, 0], "each item has a state of its own"
    wait_until(lambda: not states(), describe="the end of the states, with their tasks")


def test_a_state_can_be_anything_and_is_copied(one_worker):
    class Sum:
        def __init__(self):
            self.values = []

    def work():
        if (state := resume()) is None:
            state = Sum()
            state.values.append(1)
            checkpoint(state)
            state.values.append(2)
            os._exit(1)
        return state.values

    assert one_worker.submit(work).result(30) == [1]
    with pytest.raises(NotPicklable, match=r"the state that .* gave to checkpoint"):
        one_worker.submit(lambda: checkpoint(time.sleep for _ in "ab")).result(30)


def test_a_state_that_somebody_changes_is_refused(one_worker, gate, client, store):
    begun, go = gate("begun"), gate("go")

    def work():
        if not begun.is_open():
            checkpoint("mine")
            begun.open()
            go.wait()
            os._exit(1)
        return resume()

    future = one_worker.submit(work)
    begun.wait()
    (key,) = client.keys(store.keys.checkpoints("*").replace("{", "[{]"))
    client.hset(key, future.id, b"x" * 100)
    go.open()

    with pytest.raises(SignatureError):
        future.result(30)


def test_states_are_dropped_with_a_deleted_job_and_with_their_session(
    new_queue, gate, states, wait_until
):
    queue, begun, go = new_queue(workers=1), gate("begun"), gate("go")
    job = queue.map(lambda _: (checkpoint(1), begun.open(), go.wait()), [0], name="long")
    begun.wait()
    assert states() == 1
    job.delete()
    assert not states()
    go.open()

    queue.options(retries=1, backoff=600).submit(lambda: (checkpoint(1), 1 / 0))
    wait_until(states, describe="its state")
    queue.shutdown(cancel_futures=True)
    assert not states()


def test_outside_tasks_there_is_no_state():
    checkpoint(1)
    assert resume("nothing") == "nothing"
