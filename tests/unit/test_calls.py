"""How many calls share a message."""

from __future__ import annotations

from collections import deque

import pytest

from nbstreamq.client.calls import MOST, Call, Calls, Pace, gather
from nbstreamq.client.sender import Command
from nbstreamq.objects.functions import FunctionPickle
from nbstreamq.wire.messages import Options


def group_of_short_calls() -> Calls:
    group = Calls("s.1", FunctionPickle("d", b"", "f"), "default", Options(), None)
    group.pace.took(0.00001, 1)
    return group


@pytest.fixture
def group():
    return group_of_short_calls()


def calls_of(group, numbers, args=b"") -> list[Call]:
    calls = []
    for number in numbers:
        call = Call()
        call.group, call.index, call.args = group, number, args
        calls.append(call)
    return calls


class TestPace:
    def test_one_until_it_is_known_how_long_they_take(self):
        assert Pace().most() == 1

    def test_many_short_ones(self):
        pace = Pace()
        pace.took(0.001, 100)
        assert pace.most() == MOST

    def test_long_ones_are_alone(self):
        pace = Pace()
        pace.took(1.0, 1)
        assert pace.most() == 1

    def test_one_long_call_counts_for_a_while(self):
        pace = Pace()
        for seconds in (*[0.00001] * 5, 0.1, *[0.00001] * 10):
            pace.took(seconds, 1)
        assert pace.most() == 1
        for _ in range(1000):
            pace.took(0.00001, 1)
        assert pace.most() > 10

    def test_that_one_message_was_held_up_is_no_long_call(self):
        pace = Pace()
        for seconds in (*[0.001] * 5, 0.02):
            pace.took(seconds, 100)
        assert pace.most() > MOST // 2

    def test_first_calls_that_import_something_do_not_count(self):
        pace = Pace()
        for seconds in (0.5, 0.5, 0.00001):
            pace.took(seconds, 1)
        assert pace.most() == MOST

    def test_calls_that_turn_long_are_soon_alone(self):
        pace = Pace()
        for seconds in (*[0.00001] * 5, *[0.005] * 4):
            pace.took(seconds, 1)
        assert pace.most() == 1


class TestGather:
    def test_each_message_leaves_some_for_others(self, group):
        queue = deque(calls_of(group, range(41)))
        assert [call.index for call in gather(queue)] == list(range(10))
        assert len(queue) == 41

    def test_a_last_one(self, group):
        queue = deque(calls_of(group, [7]))
        assert [call.index for call in gather(queue)] == [7]

    def test_only_successive_calls(self, group):
        queue = deque(calls_of(group, [0, 1, 3, *range(4, 40)]))
        assert [call.index for call in gather(queue)] == [0, 1]

    @pytest.mark.parametrize("others", ["command", "group"])
    def test_only_calls_of_one_group(self, group, others):
        between = {
            "command": Command(lambda _: None, lambda _: None),
            "group": calls_of(group_of_short_calls(), [2])[0],
        }
        queue = deque([*calls_of(group, [0, 1]), between[others], *calls_of(group, range(2, 40))])
        assert [call.index for call in gather(queue)] == [0, 1]

    def test_one_at_a_time_while_nothing_is_known(self, group):
        group.pace = Pace()
        assert len(gather(deque(calls_of(group, range(100))))) == 1

    def test_a_message_stays_small(self, group):
        queue = deque(calls_of(group, range(400), bytes(4000)))
        assert len(gather(queue)) == 8
