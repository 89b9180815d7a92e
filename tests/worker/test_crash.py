"""What becomes of the tasks of a dead worker: pure, so all cases are here."""

import pytest

from nbstreamq.errors import DeathCertificate, TimeLimitExceeded, WorkerLost
from nbstreamq.objects.results import load_outcomes
from nbstreamq.wire.item_ranges import format_ranges, items
from nbstreamq.wire.messages import Options, Task
from nbstreamq.wire.settlement import Delivery
from nbstreamq.worker.crash import CrashReport, settle_crash
from nbstreamq.worker.retries import MAX_LOSSES
from nbstreamq.worker.slot import NO_ITEM, RunningTask, Stop


def crash(running=(), stopped=(0, 0, Stop.NONE), *, is_planned=False):
    certificate = DeathCertificate(worker="w1", cause="SIGSEGV")
    return CrashReport(certificate, running, stopped, is_planned)


def delivery(n_items=1, *, entry_id=b"1-1", **changes):
    fields = {"job": "s.1", "n": 0, "fn": "f", "name": "f", "call": "map", "args": b""}
    task = Task(span=(range(n_items),), **fields | changes)
    return Delivery(lane="default", entry_id=entry_id, task=task)


def ran(item=0, *, entry_id=b"1-1", serial=5):
    return RunningTask(
        serial=serial,
        item=item,
        deadline=0.0,
        memory_limit=0,
        is_limited=False,
        lane="default",
        entry_id=entry_id,
        job="s.1",
        n=0,
        run=0,
    )


def follows(settlement):
    """What follows: events, and successors as (span, attempt, losses)."""
    successors = [
        (format_ranges(s.task.span), s.task.attempt, s.task.losses) for s in settlement.successors
    ]
    return [event.kind for event in settlement.events], successors


def error_of(settlement):
    (event,) = settlement.events
    return load_outcomes(event.body)[1][0]


def test_what_did_not_run_goes_back_as_it_was():
    (settled,) = settle_crash([delivery(3, losses=2)], crash(), known=True)

    assert follows(settled) == ([], [("0:3", 1, 2)])


def test_the_item_that_ran_is_charged_and_the_rest_goes_on():
    (settled,) = settle_crash([delivery(5)], crash([ran(2)]), known=True)

    assert follows(settled) == (["lost"], [("0:2,3:5", 1, 0), ("2:3", 1, 1)])


def test_an_item_that_was_lost_too_often_fails_and_the_rest_goes_on():
    held = [delivery(5, losses=MAX_LOSSES - 1)]

    (settled,) = settle_crash(held, crash([ran(2)]), known=True)

    assert follows(settled) == (["finished"], [("0:2,3:5", 1, 2)])
    error = error_of(settled)
    assert isinstance(error, WorkerLost)
    assert error.task == "s.1-2"
    assert error.certificate.cause == "SIGSEGV"


def test_what_is_given_up_is_kept_with_its_reason():
    (again,) = settle_crash([delivery(5)], crash([ran(2)]), known=True)
    (last,) = settle_crash([delivery(5, losses=MAX_LOSSES - 1)], crash([ran(2)]), known=True)

    assert again.given_up == []
    (kept,) = last.given_up
    assert (kept.task.id_of(kept.task.span[0].start), kept.task.span) == ("s.1-2", (range(2, 3),))
    assert kept.task.args == last.delivery.task.args
    assert f"Task s.1-2 (f) lost its worker {MAX_LOSSES} times" in kept.reason


def test_an_item_that_is_not_of_this_task_is_charged_to_nobody():
    (settled,) = settle_crash([delivery(3)], crash([ran(77)]), known=True)

    assert follows(settled) == ([], [("0:3", 1, 0)])


def test_the_whole_stack_is_charged():
    held = [delivery(entry_id=b"1-1"), delivery(entry_id=b"1-2")]
    report = crash([ran(entry_id=b"1-1"), ran(entry_id=b"1-2")])

    settled = settle_crash(held, report, known=True)

    assert [follows(s) for s in settled] == [(["lost"], [("0:1", 1, 1)])] * 2


def test_a_crash_between_items_is_charged_to_all_and_then_halved():
    report = crash([ran(NO_ITEM)])

    (first,) = settle_crash([delivery(4)], report, known=True)
    (last,) = settle_crash([delivery(4, losses=2)], report, known=True)
    (alone,) = settle_crash([delivery(1, losses=2)], report, known=True)

    assert follows(first) == (["lost"], [("0:4", 1, 1)])
    assert follows(last) == ([], [("0:2", 1, 2), ("2:4", 1, 2)])
    assert isinstance(error_of(alone), WorkerLost)


def test_an_unknown_crash_is_charged_to_all():
    settled = settle_crash([delivery(4), delivery(1)], crash(), known=False)

    assert [follows(s) for s in settled] == [
        (["lost"], [("0:4", 1, 1)]),
        (["lost"], [("0:1", 1, 1)]),
    ]


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_a_guilty_item_is_found_in_the_end_and_only_it_fails(n):
    waiting, failed, done = [delivery(n)], [], []
    guilty = n // 2

    while waiting:
        held = waiting.pop()
        if guilty not in items(held.task.span):
            done += items(held.task.span)
            continue
        (settled,) = settle_crash([held], crash([ran(NO_ITEM)]), known=True)
        failed += [s for s in settled.events if s.kind == "finished"]
        waiting += [
            Delivery(lane="default", entry_id=b"1-1", task=s.task) for s in settled.successors
        ]

    assert [format_ranges(event.span) for event in failed] == [f"{guilty}:{guilty + 1}"]
    assert sorted(done) == [i for i in range(n) if i != guilty]


def test_one_that_was_killed_because_it_was_cancelled_is_cancelled():
    report = crash([ran(1, serial=5)], stopped=(5, 1, Stop.CANCELLED))

    (settled,) = settle_crash([delivery(3)], report, known=True)

    assert follows(settled) == (["cancelled"], [("0:1,2:3", 1, 0)])


def test_one_that_was_killed_for_its_time_limit_fails():
    report = crash([ran(1, serial=5)], stopped=(5, 1, Stop.TIME_LIMIT))
    held = [delivery(3, opts=Options(time_limit=1.5).encode())]

    (settled,) = settle_crash(held, report, known=True)

    assert follows(settled) == (["finished"], [("0:1,2:3", 1, 0)])
    error = error_of(settled)
    assert isinstance(error, TimeLimitExceeded)
    assert "1.5 s" in str(error)


def test_one_that_was_killed_for_its_time_limit_is_retried():
    report = crash([ran(0, serial=5)], stopped=(5, 0, Stop.TIME_LIMIT))
    held = [delivery(opts=Options(time_limit=1, retries=1, backoff=3).encode())]

    (settled,) = settle_crash(held, report, known=True)

    assert follows(settled)[1] == [("0:1", 2, 0)]
    assert settled.successors[0].delay == 3


def test_an_earlier_stop_does_not_count():
    report = crash([ran(0, serial=6)], stopped=(5, 0, Stop.CANCELLED))

    (settled,) = settle_crash([delivery()], report, known=True)

    assert follows(settled) == (["lost"], [("0:1", 1, 1)])
