"""Messages travel unchanged, or not at all."""

from dataclasses import fields
from importlib.metadata import version

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nbstreamq.errors import SignatureError
from nbstreamq.wire.item_ranges import ONE, ranges_of
from nbstreamq.wire.messages import VERSION, ControlMessage, Event, Options, Task
from nbstreamq.wire.signing import Signer

SIGNER = Signer("secret", "sims")

naturals = st.integers(0, 2**62)
seconds = st.floats(allow_nan=False)
spans = st.sets(st.integers(0, 1000), max_size=8).map(lambda s: ranges_of(sorted(s)))
bodies = st.binary(max_size=300)

tasks = st.builds(
    Task,
    job=st.text(),
    n=naturals,
    span=spans,
    fn=st.text(),
    name=st.text(),
    call=st.sampled_from(["apply", "map", "starmap"]),
    args=bodies,
    opts=bodies,
    attempt=naturals,
    losses=naturals,
)
events = st.builds(
    Event,
    kind=st.text(),
    job=st.text(),
    n=naturals,
    span=spans,
    worker=st.text(),
    attempt=naturals,
    started=seconds,
    seconds=seconds,
    body=bodies,
)
controls = st.builds(ControlMessage, kind=st.text(), job=st.text(), span=spans)
messages = tasks | events | controls


def refused(message, flat, signer=SIGNER):
    with pytest.raises(SignatureError):
        type(message).decode(flat, signer)
    return True


@given(messages)
def test_any_fields_come_back_as_they_were(message):
    assert type(message).decode(message.encode(SIGNER), SIGNER) == message


@given(messages, st.data())
def test_any_flipped_bit_of_any_value_is_refused(message, data):
    flat = message.encode(SIGNER)
    i = data.draw(st.sampled_from([i for i in range(1, len(flat), 2) if flat[i]]))
    at = data.draw(st.integers(0, len(flat[i]) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    flat[i] = flat[i][:at] + bytes([flat[i][at] ^ bit]) + flat[i][at + 1 :]
    assert refused(message, flat)


@given(messages, st.data())
def test_any_lengthened_or_shortened_value_is_refused(message, data):
    flat = message.encode(SIGNER)
    i = data.draw(st.sampled_from(range(1, len(flat), 2)))
    before = flat[i]
    flat[i] = data.draw(st.sampled_from([before + b"0", b"0" + before, before[:-1]]))
    assume(flat[i] != before)
    assert refused(message, flat)


@given(messages, st.data())
def test_a_dropped_field_is_refused(message, data):
    flat = message.encode(SIGNER)
    i = data.draw(st.sampled_from(range(0, len(flat), 2)))
    del flat[i : i + 2]
    assert refused(message, flat)


@given(messages, st.data())
def test_a_renamed_field_is_refused(message, data):
    flat = message.encode(SIGNER)
    i = data.draw(st.sampled_from(range(0, len(flat), 2)))
    flat[i] = data.draw(st.binary().filter(lambda name: name != flat[i]))
    assert refused(message, flat)


@given(messages, st.data())
def test_two_swapped_values_are_refused(message, data):
    flat = message.encode(SIGNER)
    values = st.sampled_from(range(1, len(flat), 2))
    i, j = data.draw(values), data.draw(values)
    assume(flat[i] != flat[j])
    flat[i], flat[j] = flat[j], flat[i]
    assert refused(message, flat)


@given(messages, st.binary(), st.binary())
def test_an_added_field_is_refused(message, name, value):
    flat = message.encode(SIGNER)
    assert refused(message, [name, value, *flat])
    assert refused(message, [*flat, name, value])


@given(messages)
def test_a_message_of_another_queue_is_refused(message):
    assert refused(message, message.encode(Signer("secret", "sims2")))


@given(messages)
def test_a_message_under_another_secret_is_refused(message):
    assert refused(message, message.encode(Signer("guess", "sims")))


@given(messages)
def test_a_message_of_another_kind_is_refused(message):
    for other in {Task, Event, ControlMessage} - {type(message)}:
        with pytest.raises(SignatureError):
            other.decode(message.encode(SIGNER), SIGNER)


@pytest.mark.parametrize("flat", [[], [b"sig"], [b"sig", b""], [b"kind", b"due"]])
def test_what_is_no_message_at_all_is_refused(flat):
    for kind in (Task, Event, ControlMessage):
        with pytest.raises(SignatureError):
            kind.decode(flat, SIGNER)


SOUND = {
    Task: [VERSION, 0, "0:1", "f", "map", b"", 1, 0, 0, 0, 0],
    Event: [1, "finished", "s.1", 0, "0:1", "w", 1, 0.0, 0.0, b"", 0],
    ControlMessage: [1, "s.1", "0:1", 0],
}


def entry(kind, values):
    """Return the signed entry of a message that says `values`."""
    data = msgspec.msgpack.encode(values)
    if kind is Task:
        sealed = SIGNER.sign(b"task", b"f", b"s.1", data, b"args") + data
        return [b"name", b"f", b"job", b"s.1", b"header", sealed, b"args", b"args"]
    if kind is Event:
        return [b"event", SIGNER.seal(b"event", b"", data)]
    return [b"kind", b"cancel", b"message", SIGNER.seal(b"control", b"cancel", data)]


@pytest.mark.parametrize("kind", SOUND)
def test_signed_nonsense_is_refused_as_well(kind):
    sound = SOUND[kind]
    assert isinstance(kind.decode(entry(kind, sound), SIGNER), kind)
    for i, value in enumerate(sound):
        wrong = [*sound]
        wrong[i] = None if isinstance(value, str | bytes) else "5:1"
        with pytest.raises(SignatureError, match="malformed"):
            kind.decode(entry(kind, wrong), SIGNER)
    span = ["5:1" if value == "0:1" else value for value in sound]
    for nonsense in (span, sound[:-1], [], {}, 7, "x", b"x"):
        with pytest.raises(SignatureError, match="malformed"):
            kind.decode(entry(kind, nonsense), SIGNER)


@pytest.mark.parametrize("kind", SOUND)
def test_what_a_later_version_adds_at_the_end_is_ignored(kind):
    assert isinstance(kind.decode(entry(kind, [*SOUND[kind], "more"]), SIGNER), kind)


def test_a_task_says_which_version_wrote_it():
    assert version("nbstreamq") == VERSION
    task = Task.decode(entry(Task, ["0.9.9", *SOUND[Task][1:]]), SIGNER)
    assert task.version == "0.9.9"
    assert Task.decode(task.encode(SIGNER), SIGNER) == task


def test_a_name_with_half_a_surrogate_pair_is_escaped():
    task = Task(job="s.1", n=0, fn="f", name="a\ud800", call="map", args=b"")
    assert Task.decode(task.encode(SIGNER), SIGNER).name == "a\\ud800"


@given(tasks, spans, naturals, naturals)
def test_a_task_put_back_keeps_all_but_span_attempt_and_losses(task, span, attempt, losses):
    again = task.again(span, attempt=attempt, losses=losses)
    same = {"span": task.span, "attempt": task.attempt, "losses": task.losses}
    assert again.with_changes(**same) == task
    assert (again.span, again.attempt - task.attempt) == (span, attempt)
    assert again.losses - task.losses == losses


@given(events)
def test_the_same_event_twice_is_no_copy(event):
    assert event.encode(SIGNER) != event.encode(SIGNER)


def test_the_same_order_twice_is_no_copy():
    first, second = (ControlMessage(kind="cancel", job="s.1", span=ONE) for _ in range(2))
    assert first.encode(SIGNER) != second.encode(SIGNER)


def test_the_id_of_an_item_counts_from_the_start_of_its_job():
    task = Task(job="s.3", n=40, fn="f", name="f", call="map", args=b"")
    assert task.id_of(2) == "s.3-42"


@given(
    st.builds(
        Options,
        retries=st.integers(0, 99),
        backoff=st.floats(0, 1e6),
        time_limit=st.none() | st.floats(0, 1e6),
        lane=st.none() | st.text(),
        delay=st.floats(0, 1e6),
    )
)
def test_options_come_back_as_they_were(options):
    assert Options.decode(options.encode()) == options


def test_default_options_take_no_room():
    assert Options().encode() == b""


@pytest.mark.parametrize("option", [f.name for f in fields(Options)])
def test_only_changed_options_are_written(option):
    assert option.encode() in Options(**{option: 7}).encode()
    assert Options(**{option: 7}).encode().count(b":") == 1
