"""Who is silent, by one's own clock."""

from nbstreamq.worker.supervisor import OtherNodes


def looks(nodes, *beats, every=1.0, begin=100.0):
    """Let a second pass between looks; return what the last one finds silent."""
    found = []
    for k, beat in enumerate(beats):
        found = nodes.silent(beat, begin + k * every)
    return found


def test_a_node_whose_heartbeat_stays_the_same_falls_silent():
    beats = [{"there": 7.0, "here": float(k)} for k in range(6)]
    assert looks(OtherNodes(4.0), *beats[:4]) == []
    assert looks(OtherNodes(4.0), *beats[:5]) == ["there"]


def test_it_tells_when_to_look_for_the_next_that_falls_silent():
    nodes = OtherNodes(4.0)
    assert looks(nodes, *({"there": 7.0, "here": float(k)} for k in range(4))) == []
    assert nodes.next_end == 104.0
    assert nodes.silent({"there": 7.0, "here": 3.0}, 104.0) == ["there"]
    assert nodes.next_end == 107.0


def test_silence_counts_from_the_heartbeat_and_not_from_the_look():
    nodes = OtherNodes(4.0)
    for second in range(4):
        last = 700.0 if second else 0.0
        assert nodes.silent({"there": last}, 100.0 + second, 1000.0 * second) == []
    assert nodes.next_end == 100.7 + 4.0


def test_the_server_s_clock_does_not_matter():
    assert looks(OtherNodes(4.0), *({"there": t} for t in (5e9, 1.0, 2.0, 9e9, 3.0, 4.0))) == []
    assert looks(OtherNodes(4.0), *({"there": 5e9, "here": k} for k in range(6))) == ["there"]


def test_after_an_outage_the_others_get_time_to_say_something():
    nodes = OtherNodes(4.0)
    looks(nodes, {"there": 7.0}, {"there": 7.0})
    assert looks(nodes, *({"there": 7.0} for _ in range(4)), begin=160.0) == []
    assert nodes.silent({"there": 7.0}, 164.0) == ["there"]


def test_one_that_comes_back_is_not_silent():
    nodes = OtherNodes(4.0)
    assert looks(nodes, *({"there": 7.0} for _ in range(6))) == ["there"]
    assert nodes.silent({"there": 8.0}, 106.0) == []
