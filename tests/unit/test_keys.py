"""Names and lifetimes of keys; lanes for tasks inside tasks."""

import inspect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbstreamq.wire import keys as module
from nbstreamq.wire.keys import (
    LANES,
    MAX_DEPTH,
    PREFIX,
    Keys,
    deeper_lanes,
    nested_lane,
    session_of,
)

QUEUE = Keys("sims")


def every_key():
    """Return kind -> key, for each kind of key that `Keys` can name."""
    found = {}
    for name, member in inspect.getmembers(QUEUE):
        if not name.startswith("_") and name != "queue":
            found[name] = member("x") if callable(member) else member
    return found


@pytest.mark.parametrize("key", every_key().values())
def test_all_keys_share_the_queue_s_hash_tag(key):
    assert key.startswith(f"{PREFIX}:{{sims}}:")
    assert re.findall(r"\{(.*?)\}", key) == ["sims"]


def test_no_two_kinds_of_key_have_the_same_name():
    keys = every_key()
    assert len(set(keys.values())) == len(keys)


def test_the_table_lists_every_kind_of_key_and_no_other():
    written = {row.partition(":")[0] for row in re.findall(r"^``(\S+?)``", module.__doc__, re.M)}
    made = {
        key.removeprefix(f"{PREFIX}:{{sims}}:").partition(":")[0] for key in every_key().values()
    }
    assert written == made


@pytest.mark.parametrize(
    "name", ["", "a b", "a{b", "a}b", "a\tb", "a\nb", "a\0b", "-n", "x" * 201, "\ud800"]
)
def test_a_name_that_would_break_keys_is_refused(name):
    with pytest.raises(ValueError, match="queue name"):
        Keys(name)


@given(
    st.text(
        alphabet=st.characters(exclude_categories=["C", "Z"], exclude_characters="{}"),
        max_size=50,
    )
)
def test_two_queues_never_share_a_key(name):
    other = Keys(f"x{name}")
    assert (other.meta == QUEUE.meta) == (other.queue == QUEUE.queue)


def test_a_job_s_events_go_to_the_session_in_its_name():
    assert session_of("a1b2.17") == "a1b2"


def test_each_depth_of_tasks_inside_tasks_waits_in_a_lane_of_its_own():
    lanes = [nested_lane(depth) for depth in range(MAX_DEPTH)]
    assert len(set(lanes)) == MAX_DEPTH
    assert set(lanes) < set(LANES)


def test_what_is_nested_too_deep_shares_the_last_lane():
    assert nested_lane(MAX_DEPTH + 5) == nested_lane(MAX_DEPTH - 1)


@pytest.mark.parametrize("depth", range(MAX_DEPTH + 3))
def test_who_waits_serves_the_lane_of_what_it_submitted(depth):
    assert nested_lane(depth) in deeper_lanes(depth)


@pytest.mark.parametrize("depth", range(1, MAX_DEPTH))
def test_who_waits_serves_no_task_of_its_own_depth(depth):
    assert nested_lane(depth - 1) not in deeper_lanes(depth)


def test_deeper_tasks_are_more_urgent():
    places = [LANES.index(nested_lane(depth)) for depth in range(MAX_DEPTH)]
    assert places == sorted(places, reverse=True)
