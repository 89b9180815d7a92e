"""How many calls share a message."""

from __future__ import annotations

from collections import deque

import pytest

from nbstreamq.client.channel import Order
from nbstreamq.client.ledger import MOST, Call, CallLedger, CallPace, gather


@pytest.fixture
def ledger():
    made = CallLedger("s.1", "f", abs, "default")
    made.pace = CallPace()
    made.pace.took(0.00001, 1)
    return made


def calls_of(ledger, numbers) -> list[Call]:
    return [Call(ledger, number, b"", 0.0) for number in numbers]


class TestPace:
    def test_one_until_it_is_known_how_long_they_take(self):
        assert CallPace().most == 1

    def test_many_short_ones(self):
        pace = CallPace()
        pace.took(0.001, 100)
        assert pace.most == MOST

    def test_long_ones_are_alone(self):
        pace = CallPace()
        pace.took(1.0, 1)
        assert pace.most == 1

    def test_one_long_call_counts_for_a_while(self):
        pace = CallPace()
        for seconds in (*[0.00001] * 5, 0.1, *[0.00001] * 10):
            pace.took(seconds, 1)
        assert pace.most == 1
        for _ in range(1000):
            pace.took(0.00001, 1)
        assert pace.most > 10

    def test_that_one_message_was_held_up_is_no_long_call(self):
        pace = CallPace()
        for seconds in (*[0.001] * 5, 0.02):
            pace.took(seconds, 100)
        assert pace.most > MOST // 2

    def test_first_calls_that_import_something_do_not_count(self):
        pace = CallPace()
        for seconds in (0.5, 0.5, 0.00001):
            pace.took(seconds, 1)
        assert pace.most == MOST

    def test_calls_that_turn_long_are_soon_alone(self):
        pace = CallPace()
        for seconds in (*[0.00001] * 5, *[0.005] * 4):
            pace.took(seconds, 1)
        assert pace.most == 1


class TestGather:
    def test_each_message_leaves_some_for_others(self, ledger):
        queue = deque(calls_of(ledger, range(41)))
        assert [call.item for call in gather(queue)] == list(range(10))
        assert len(queue) == 41

    def test_a_last_one(self, ledger):
        queue = deque(calls_of(ledger, [7]))
        assert [call.item for call in gather(queue)] == [7]

    def test_only_successive_calls(self, ledger):
        queue = deque(calls_of(ledger, [0, 1, 3, *range(4, 40)]))
        assert [call.item for call in gather(queue)] == [0, 1]

    @pytest.mark.parametrize("others", ["order", "ledger"])
    def test_only_calls_of_one_ledger(self, ledger, others):
        between = {
            "order": Order(lambda _: None, lambda _: None),
            "ledger": Call(CallLedger("s.2", "f", abs, "default"), 2, b"", 0.0),
        }
        queue = deque([*calls_of(ledger, [0, 1]), between[others], *calls_of(ledger, range(2, 40))])
        assert [call.item for call in gather(queue)] == [0, 1]

    def test_one_at_a_time_while_nothing_is_known(self, ledger):
        ledger.pace = CallPace()
        assert len(gather(deque(calls_of(ledger, range(100))))) == 1

    def test_a_message_stays_small(self, ledger):
        queue = deque(Call(ledger, number, bytes(4000), 0.0) for number in range(400))
        assert len(gather(queue)) == 8
