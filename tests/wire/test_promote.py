"""promote: a delayed task moves into its lane when it is due."""

import threading

import pytest


def test_nothing_delayed_means_no_next_time(store):
    assert store.promote(["default", "low"]) is None


def test_the_time_until_the_earliest_task_of_all_lanes_is_told(store, submit):
    submit(0, delay=90, lane="low")
    submit(1, delay=30)
    submit(2, delay=60)
    assert store.promote(["default", "low", "high"]) == pytest.approx(30, abs=5)


def test_only_what_is_due_moves(store, submit, take, make_task, wait_until):
    late = make_task(1, args=bytes(range(256)))
    submit(0, delay=60)
    submit(late, delay=0.03)
    wait_until(lambda: store.promote(["default"]) > 10, describe="the first task to move")
    assert [d.task for d in take()] == [late]


def test_due_tasks_move_in_the_order_of_their_times(store, submit, take, wait_until):
    submit(1, delay=0.06)
    submit(0, delay=0.03)
    wait_until(lambda: store.promote(["default"]) is None, describe="both tasks to move")
    assert [d.task.n for d in take()] == [0, 1]


def test_supervisors_that_promote_at_once_move_a_task_once(store, submit, take, wait_until):
    submit(*range(50), delay=0.05)

    def promote():
        mine = store.clone()
        wait_until(lambda: mine.promote(["default"]) is None, describe="all tasks to move")
        mine.close()

    supervisors = [threading.Thread(target=promote) for _ in range(4)]
    for supervisor in supervisors:
        supervisor.start()
    for supervisor in supervisors:
        supervisor.join()
    assert sorted(d.task.n for d in take()) == list(range(50))


def test_more_than_a_thousand_due_tasks_move_in_several_steps(store, submit, take, wait_until):
    submit(*range(2500), delay=0.01)
    wait_until(lambda: store.promote(["default"]) is None, describe="all tasks to move")
    assert len(take(count=5000)) == 2500


#: Nothing; a number; fields of which one is a number, or is missing.
JUNK = [b"", b"\x07", b"\x92\xa1a\x07", b"\x94\xa1a\xa1b\xc0\xa1c"]


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_what_is_no_task_holds_nothing_up(store, client, submit, take, wait_until, junk):
    client.zadd(store.keys.delayed("default"), {junk: 1})
    submit(0, delay=0.01)
    wait_until(lambda: store.promote(["default"]) is None, describe="the task to move")
    assert [d.task.n for d in take()] == [0]
    assert store.refused() == {"task": 1}
