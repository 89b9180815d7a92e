"""What is not signed - names, counts, descriptions - misleads nobody, and harms no terminal."""

import json
from contextlib import suppress

import pytest

from nbstreamq import JobNotFound, SignatureError, cli
from nbstreamq.notebook.html import dead_html, jobs_html, status_html, workers_html
from nbstreamq.wire.keys import Keys
from nbstreamq.wire.replies import MAX_COUNT, count, printable, seconds

#: Changes the title of a terminal, clears it, and turns what follows round; and a new line.
EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\nqueue 'fake': all is well"


@pytest.fixture
def keys(queue_name):
    return Keys(queue_name)


def assert_shown_safely(*values):
    for value in values:
        for text in (repr(value), str(value), f"{value}"):
            assert text
            assert all(c.isprintable() for c in text.replace("\n", "")), repr(text)
            assert "\nqueue 'fake'" not in text


# -- names of jobs --------------------------------------------------------------------------------


class TestTheNameOfAJob:
    @pytest.fixture
    def jobs(self, queue, client, keys):
        """Two jobs, ``good`` and ``bad``; somebody has named ``bad`` ``good``."""
        queue.map(abs, [-1, -2], name="good").result(30)
        queue.map(abs, [-666], name="bad").result(30)
        bad = client.hget(keys.jobs, "bad")
        client.hset(keys.jobs, "good", bad)

    def test_does_not_lead_to_another_one_s_results(self, queue, jobs):
        with pytest.raises(SignatureError, match="another job, bad:"):
            queue.attach("good")
        with pytest.raises(SignatureError, match="another job, bad:"):
            queue.map(abs, [-666], name="good")
        assert list(queue.attach("bad")) == [666]

    def test_is_listed_only_with_its_own_job(self, queue, jobs):
        assert [job.name for job in queue.jobs()] == ["bad"]

    def test_leads_to_no_job_whose_state_was_put_under_its_id(self, queue, client, keys):
        queue.map(abs, [-1, -2], name="good").result(30)
        queue.map(abs, [-666], name="bad").result(30)
        good, bad = (client.hget(keys.jobs, name).decode() for name in ("good", "bad"))
        for key in (keys.job, keys.inputs, keys.events):
            client.copy(key(bad), key(good), replace=True)
        with pytest.raises(SignatureError):
            queue.attach("good")

    def test_can_be_any_bytes(self, queue, client, keys):
        queue.map(abs, [-1], name="good").result(30)
        client.hset(keys.jobs, b"\xff\xfe", b"\xff")
        client.hset(keys.jobs, EVIL.encode(), b"nowhere:1")
        client.hset(keys.jobs, "none", b"\xff\x00")
        assert_shown_safely(queue.jobs())
        with pytest.raises(JobNotFound) as caught:
            queue.attach("none")
        assert_shown_safely(caught.value)


# -- what is shown --------------------------------------------------------------------------------


def plant(client, keys, evil):
    """Write `evil` wherever something is read that is not signed."""
    client.xadd(keys.dead, {"refused": evil, "from": evil, "job": evil, "n": evil, evil: evil})
    client.xadd(keys.dead, {evil: evil})
    client.xadd(keys.dead, {"failed": evil, "from": f"lane:{evil}", "job": evil, "n": "1"})
    client.hset(keys.refused, evil, 3)
    client.hset(keys.lanes, evil, 1)
    client.hset(keys.jobs, evil, evil)
    client.hset(keys.troubles, evil, evil)
    client.zadd(keys.nodes, {evil: 1})
    fine = {"node": "n", "host": "h", "pid": 1, "python": "3.11", "state": "idle", "lanes": ["x"]}
    client.hset(keys.workers, evil, json.dumps(fine))
    for k, field in enumerate(fine):
        value = [evil] if field == "lanes" else evil
        client.hset(keys.workers, f"w{k}", json.dumps(fine | {field: value}))
    client.hset(keys.workers, "w-fine", json.dumps(fine))


@pytest.fixture
def quiet(make_queue, client, keys):
    """A queue without workers."""
    yield make_queue(workers=0)
    planted = keys.dead, keys.nodes, keys.workers, keys.troubles, keys.jobs, keys.lanes
    client.delete(*planted)  # they have no TTL


def test_escapes_in_what_others_wrote_reach_no_terminal(quiet, client, keys, server_url, capsys):
    plant(client, keys, EVIL)
    status = quiet.status()
    assert status.refused
    assert_shown_safely(status, quiet.dead(), quiet.workers(), quiet.jobs())
    assert_shown_safely(*quiet.dead(), *quiet.workers(), *quiet.jobs())
    assert [worker.id for worker in quiet.workers()] == ["w-fine"]
    with pytest.raises(SystemExit):
        cli.main(["doctor", server_url, "--queue", quiet.name])
    assert_shown_safely(capsys.readouterr().out)


def test_tags_in_what_others_wrote_reach_no_notebook(quiet, client, keys):
    tag = "<img src=x onerror=alert(1)>"
    plant(client, keys, tag)
    shown = [status_html(quiet.status()), workers_html(quiet.workers())]
    shown += [dead_html(quiet.dead()), jobs_html(quiet.jobs())]
    assert "&lt;img" in shown[0]
    assert "<img" not in "".join(shown)


def test_a_queue_s_name_that_none_can_have_is_not_listed(quiet, client, server_url, capsys):
    others = [f"nbq2:{{{name}}}:meta".encode() for name in (EVIL, "a b", "", "x" * 999)]
    others.append(b"nbq2:{\xff\x00}:meta")
    for key in others:
        client.set(key, "", ex=60)
    cli.main(["queues", "list", server_url])
    client.delete(*others)
    said = capsys.readouterr().out
    assert quiet.name in said
    assert_shown_safely(said)


def test_nor_does_one_in_an_answer_of_the_server(quiet):
    with pytest.raises(Exception, match="refused a command") as caught:
        quiet._session.ask(lambda store: store.wire.call((EVIL,)))
    assert_shown_safely(caught.value)


DIGITS = b"9" * 6000
NUMBERS = [DIGITS, b"-1", b"1.5", b"nan", b"inf", b"1e999", b"", b"x", b"\xff", "٣".encode()]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: repr(n[:8]))
def test_a_number_that_is_none_makes_nothing_raise(quiet, queue_name, client, keys, number):
    client.hset(keys.refused, "task", number)
    client.xadd(keys.dead, {"refused": "x", "from": "y", "job": "z", "n": number})
    for field in ("pid", "memory", "cpu", "supervisor"):
        text = b'{"node": "n", "%b": %b}' % (field.encode(), number)
        client.hset(keys.workers, f"w-{field}", text)
        client.hset(keys.workers, f"W-{field}", b'{"%b": "%b"}' % (field.encode(), number))
    assert_shown_safely(quiet.status(), quiet.dead(), quiet.workers(), quiet.jobs())
    assert quiet.status().refused.get("task", 0) in (0, MAX_COUNT)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: repr(n[:8]))
def test_nor_does_one_in_a_job(queue, client, keys, number):
    queue.map(abs, [-1, -2], name="j").result(30)
    job = client.hget(keys.jobs, "j").decode()
    for field in ("n", "total", "done", "failed", "cancelled", "run", "made", "0"):
        before = client.hget(keys.job(job), field)
        client.hset(keys.job(job), field, number)
        assert_shown_safely(queue.jobs())
        with suppress(SignatureError):  # it can be seen that it was changed
            queue.attach("j")
        client.hdel(keys.job(job), field)
        if before is not None:
            client.hset(keys.job(job), field, before)
    assert list(queue.attach("j")) == [1, 2]


def test_nor_does_the_time_of_a_dead_letter(quiet, client, keys):
    client.xadd(keys.dead, {"refused": "x", "from": "y"}, id=f"{2**64 - 1}-1")
    (letter,) = quiet.dead()
    assert letter.when.year == 9999
    assert_shown_safely(quiet.dead(), quiet.status())


# -- how it is read -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode", "plain ünïcode"),
        ("\x1b[31m", "\\x1b[31m"),
        (b"\x9b\x07\n", "\ufffd\\x07\\n"),
        ("\u202egnp", "\\u202egnp"),
        ("\udcff", "\\udcff"),
    ],
)
def test_a_text_is_escaped(text, shown):
    assert printable(text) == shown


def test_numbers_have_bounds():
    assert [count(n) for n in NUMBERS] == [MAX_COUNT] + [0] * (len(NUMBERS) - 1)
    assert [count(n) for n in (b"0", b"17", b"0017", "5", None)] == [0, 17, 17, 5, 0]
    assert [seconds(n) for n in (b"1.5", b"-1", b"nan", b"inf", b"x")] == [1.5, 0, 0, 0, 0]
    assert seconds(DIGITS) == 0
