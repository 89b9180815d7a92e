"""Each sentence of docs/security.md, and what shows it: a test here or elsewhere.

`SHOWN` begins with what a sentence begins with. A sentence that only explains, or gives advice,
promises nothing that a test could show: it says so.
"""

import ast
import os
import random
import re
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from nbstreamq import SecretMismatch, SignatureError, TaskQueue
from nbstreamq.wire.signing import N_SEEN, SIGNATURE_BYTES, ReplayCache, Signer
from nbstreamq.worker.settled import N_MARKS, SETTLED_BYTES, SettledCache
from tests.counting import Runs

ROOT = Path(__file__).parents[2]
EXPLAINS, ADVICE = "explains", "advice"
FUZZ = "crash/test_fuzz.py::test_forgeries_harm_nobody"
REPLAY = "crash/test_replay.py::"
ACL = "crash/test_acl.py::test_the_rules_are_enough_and_no_more"
ROTATION = "crash/test_rotation.py::"
LARGE = "client/test_large.py::TestUrl::"
FILES = "client/test_files_of_others.py::"
SECRETS = "client/test_secrets.py::"
SIGNING = "unit/test_signing.py::"
TLS = "client/test_tls.py::"
NEW_SECRET = "wire/test_values.py::TestANewSecret::"
DOCTOR = "unit/test_cli.py::TestDoctor::"
HERE = "crash/test_security.py::"

#: The begin of a sentence -> tests, below tests/, or why there is none.
SHOWN = {
    "What nbstreamq protects": EXPLAINS,
    "Each statement has a test": HERE + "test_each_sentence_is_shown",
    "With `TaskQueue()` and no URL": "launch/test_server.py::test_is_private_and_on_no_port",
    "Functions, arguments and results": "client/test_refusal.py::test_the_trace_would_be_seen",
    "So anybody whose pickle": EXPLAINS,
    "Therefore **everything": [
        FUZZ,
        "client/test_refusal.py::test_a_forged_value_fails_its_tasks_and_says_why",
    ],
    "Workers and clients both check": "client/test_refusal.py::"
    "test_forged_events_are_said_once_and_counted",
    "The signature is keyed BLAKE3": HERE + "test_a_signature_has_128_bits",
    "The key is the queue's secret": HERE + "test_the_secret_is_never_sent",
    "| runs code": [
        FUZZ,
        "client/test_refusal.py::test_a_forged_function_fails_its_tasks_and_says_why",
    ],
    "| changes": [
        "unit/test_messages.py::test_any_flipped_bit_of_any_value_is_refused",
        "wire/test_values.py::test_a_value_that_someone_else_wrote_is_refused",
        "client/test_refusal.py::test_forged_events_are_said_once_and_counted",
    ],
    "| passes a message off": [
        "unit/test_messages.py::test_a_message_of_another_queue_is_refused",
        "unit/test_messages.py::test_a_message_of_another_kind_is_refused",
        "wire/test_refusal.py::TestEvents::test_of_another_session_are_refused",
        "wire/test_values.py::test_a_value_under_another_s_digest_is_refused",
    ],
    "| passes one named job's": [
        "client/test_unsigned.py::TestTheNameOfAJob::test_does_not_lead_to_another_one_s_results",
        "client/test_unsigned.py::TestTheNameOfAJob::test_leads_to_no_job_whose_state_was_put_under_its_id",
    ],
    "| repeats": REPLAY + "TestATask::test_that_was_done_is_refused_and_kept",
    "| writes escape": [
        "client/test_unsigned.py::test_escapes_in_what_others_wrote_reach_no_terminal",
        "client/test_unsigned.py::test_a_number_that_is_none_makes_nothing_raise",
    ],
    "| reads": HERE + "TestSomebodyWhoCanWrite::test_reads_what_travels",
    "| deletes": [
        HERE + "TestSomebodyWhoCanWrite::test_deletes_a_task",
        HERE + "TestSomebodyWhoCanWrite::test_cancels_a_task",
        HERE + "TestSomebodyWhoCanWrite::test_pretends_that_there_are_workers",
    ],
    "| brings back": HERE
    + "TestSomebodyWhoCanWrite::test_brings_back_an_older_state_of_a_named_job",
    "| fills": HERE + "TestSomebodyWhoCanWrite::test_makes_workers_leave",
    "Only one thing helps": ADVICE,
    "The password, TLS": ADVICE,
    "The signature is the last line": ADVICE,
    "**Everybody who knows": EXPLAINS,
    "Give queues of people": ADVICE,
    "With the embedded server, large values": FILES + "test_a_stranger_gets_at_no_value",
    "They are not signed": EXPLAINS,
    "The messages that name the files": FUZZ,
    "A folder is refused": [
        FILES + "test_a_planted_memory_folder_is_refused",
        FILES + "test_a_memory_folder_that_is_open_to_others_is_refused",
        FILES + "test_a_memory_folder_that_is_a_link_is_refused",
    ],
    "Only files that nbstreamq": FILES + "test_what_others_made_stays",
    "Workers of a queue with a URL": FILES + "test_workers_of_a_url_use_no_open_folder",
    "Large values on a server": [
        "wire/test_values.py::test_a_value_that_someone_else_wrote_is_refused",
        LARGE + "test_refuses_what_somebody_else_wrote",
    ],
    "The worker that fetches": LARGE + "test_refuses_what_somebody_else_wrote",
    "Others can read the values there": HERE + "TestSomebodyWhoCanWrite::test_reads_what_travels",
    "A copy of a message has": EXPLAINS,
    "So each process remembers": EXPLAINS,
    "**Tasks.**": HERE + "test_the_workers_of_a_machine_remember_a_million_messages",
    "They do not run any": REPLAY
    + "TestATask::test_is_known_to_all_workers_of_the_machine_also_later_ones",
    "When a call runs again": [
        REPLAY + "TestWhatIsRunAgainOnPurpose::test_by_retries_and_after_failures",
        REPLAY + "TestWhatIsRunAgainOnPurpose::test_where_its_worker_died_or_gave_it_back",
    ],
    "**Events, control messages": [
        HERE + "test_a_process_remembers_65000_messages",
        REPLAY + "test_an_order_to_cancel_does_not_stop_what_runs_again",
        REPLAY + "TestATask::test_for_one_worker_is_not_run_by_another",
    ],
    "The end of a call is not among them": REPLAY
    + "TestAnEvent::test_of_a_failure_does_not_undo_the_retry",
    "**Functions and values** are bound": REPLAY
    + "test_functions_and_values_that_are_put_back_are_the_same",
    "A copy of a task does run": [
        REPLAY + "TestOnAnotherMachine::test_a_copy_is_run_but_counts_for_nothing_in_a_named_job",
        HERE + "TestACopy::test_runs_after_the_supervisor_was_restarted_and_its_result_is_dropped",
        HERE + "TestACopy::test_runs_beside_the_first_and_the_call_has_one_result",
    ],
    "Its result does not count": HERE
    + "TestACopy::test_runs_after_the_supervisor_was_restarted_and_its_result_is_dropped",
    "After a restart, a server": "crash/test_server_death.py::"
    "test_what_was_waiting_is_run_after_it",
    "So tasks must be allowed": EXPLAINS,
    "Refused messages are counted": [
        "wire/test_refusal.py::TestTasks::test_counts_and_evidence_go_away_by_themselves",
        FUZZ,
    ],
    "`q.status()` shows": "client/test_refusal.py::test_forged_events_are_said_once_and_counted",
    "Even a single refusal means": ADVICE,
    "`q.dead()` also lists": [
        ACL,
        "crash/test_dead.py::test_a_map_that_fails_as_a_whole_pushes_nothing_else_out",
    ],
    "On one machine, the secret": SIGNING + "test_a_new_key_file_is_private_and_is_used_again",
    "It must be your own": [
        SIGNING + "test_a_key_file_that_others_can_read_is_refused",
        SIGNING + "test_a_key_file_that_is_a_link_is_refused",
        SIGNING + "test_a_key_file_of_another_user_is_refused",
    ],
    "Other machines can reach": "unit/test_trust.py::test_sockets_and_loopback_addresses_are_local",
    "For such a server you must": [
        "client/test_trust.py::test_a_queue_by_url_is_refused_and_nothing_is_sent",
        "client/test_trust.py::test_workers_are_refused_and_nothing_is_sent",
        "unit/test_trust.py::test_sockets_and_loopback_addresses_are_local",
    ],
    "Make one, and set it": "unit/test_cli.py::test_a_new_secret_is_printed_alone",
    "Such a secret, or a key file": [
        "unit/test_trust.py::test_a_secret_that_can_be_guessed_is_refused_for_a_remote_server",
        "unit/test_trust.py::test_sixteen_random_bytes_will_do",
        SIGNING + "test_a_key_file_that_can_be_guessed_is_refused",
    ],
    "Otherwise it is refused (`SecretTooWeak`": "unit/test_trust.py::"
    "test_a_secret_that_can_be_guessed_is_refused_for_a_remote_server",
    "In a notebook, `TaskQueue(url, secret": ADVICE,
    "No secret and no password": [
        SECRETS + "test_a_traceback_with_variables_shows_none",
        SECRETS + "test_reprs_say_nothing",
        "client/test_queue.py::TestPasswords::test_are_never_shown",
        "client/test_queue.py::TestPasswords::test_are_not_in_errors",
        "client/test_queue.py::TestPasswords::test_are_not_on_command_lines",
        "launch/test_local.py::test_no_command_line_shows_the_secret",
    ],
    "Workers take both out": SECRETS + "test_a_task_finds_no_secret_in_its_environment",
    "`TaskQueue()` inside a task": SECRETS + "test_a_queue_without_arguments_works_in_a_task",
    "Code that runs in a worker": EXPLAINS,
    "A kernel sends its workers": "client/test_managers.py::"
    "test_tasks_share_the_objects_of_a_manager",
    "That key is in no": "client/test_managers.py::test_the_key_is_in_no_environment",
    "`insecure=True`": [
        "client/test_trust.py::test_workers_may_be_insecure",
        "client/test_trust.py::test_a_queue_that_is_insecure_or_has_a_secret_works",
    ],
    "Use that only if": ADVICE,
    "A secret may be a list": SIGNING
    + "test_the_first_of_several_secrets_signs_and_all_are_accepted",
    "So you can change the secret": ROTATION + "test_a_secret_is_changed_while_tasks_wait_and_run",
    "Set `NBSTREAMQ_SECRET=old,new`": ROTATION
    + "test_a_secret_is_changed_while_tasks_wait_and_run",
    "Set `NBSTREAMQ_SECRET=new,old`": NEW_SECRET
    + "test_is_the_queue_s_once_somebody_signs_with_it",
    "Now all accept both": ROTATION + "test_a_secret_is_changed_while_tasks_wait_and_run",
    "The first process that has it": NEW_SECRET + "test_is_the_queue_s_once_somebody_signs_with_it",
    "After a week": ROTATION + "test_a_secret_is_changed_while_tasks_wait_and_run",
    "Set `NBSTREAMQ_SECRET=new`, and": ROTATION
    + "test_a_secret_is_changed_while_tasks_wait_and_run",
    "A named job that is kept longer": HERE
    + "test_a_named_job_is_read_with_the_secret_it_was_made_with",
    "At step 2, workers": ROTATION + "test_tasks_wait_for_workers_that_know_the_new_secret",
    "Nothing is lost.": ROTATION + "test_tasks_wait_for_workers_that_know_the_new_secret",
    "A client that knows only": ROTATION + "test_a_client_with_the_old_one_is_told_once",
    "If the old secret has leaked": HERE + "test_without_its_keys_a_queue_takes_another_secret",
    "`rediss://`": [
        TLS + "test_a_queue_and_its_workers_go_through_tls",
        TLS + "test_a_certificate_that_nobody_known_has_signed_is_refused",
        TLS + "test_a_certificate_for_another_machine_is_refused",
    ],
    "For a certificate that you": TLS + "test_a_queue_and_its_workers_go_through_tls",
    "Local workers get the same URL": TLS
    + "test_workers_of_a_client_with_tls_know_the_certificate_too",
    "Without TLS": EXPLAINS,
    "If other programs use the server": ADVICE,
    "These rules are enough": ACL,
    "Put them in": ADVICE,
    "To allow only some queues": "crash/test_acl.py::test_a_rule_for_one_queue_allows_no_other",
    "A worker may do what": ACL,
    "It needs no other keys": ACL,
    "You may add `+scan`": "crash/test_acl.py::test_to_list_all_queues_a_client_must_be_allowed_to",
    "It shows them": EXPLAINS,
    "You may add `+config|get`": [ACL, "wire/test_server_facts.py::test_whether_a_server_saves"],
    "Everything else works without it": ACL,
    "The rules keep a user": "crash/test_acl.py::test_nothing_else_is_allowed",
    "Inside a queue both can": EXPLAINS,
    "`nbstreamq doctor URL` says": DOCTOR + "test_problems_are_listed_and_exit_with_1",
}


def sentences():
    """Return the sentences, and the rows of the table, of the document."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    for block in re.split(r"\n\s*\n|\n(?=[-|#]|\d\. )", text):
        flat = re.sub(r"^(- |\d\. )", "", " ".join(block.split()))
        if flat.startswith(("#", "|--", "| Somebody")):
            continue
        parts = [flat] if flat.startswith("|") else re.split(r"(?<=[.])\**\s+(?=[A-Z`*])", flat)
        yield from filter(None, _joined(parts))


def _joined(parts):
    """Keep a bold title, such as ``**Tasks.**``, with the sentence behind it."""
    parts = list(parts)
    for k, part in enumerate(parts[:-1]):
        if part.startswith("**") and part.endswith(".") and len(part) < 50:
            parts[k : k + 2] = ["", f"{part}** {parts[k + 1]}"]
    return parts


def entry_of(sentence):
    return [begin for begin in SHOWN if sentence.startswith(begin)]


def test_each_sentence_is_shown():
    found = list(sentences())
    assert [s for s in found if len(entry_of(s)) != 1] == []
    assert [b for b in SHOWN if not any(s.startswith(b) for s in found)] == []


@pytest.mark.parametrize("begin", SHOWN)
def test_what_shows_it_is_there(begin):
    shown = SHOWN[begin]
    for name in [shown] if isinstance(shown, str) else shown:
        if name not in (EXPLAINS, ADVICE):
            file, *path = name.split("::")
            body = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8")).body
            for step in path:
                (body,) = [n.body for n in body if getattr(n, "name", None) == step]


# -- what no other test shows ---------------------------------------------------------------------


def test_a_signature_has_128_bits():
    assert SIGNATURE_BYTES == 16
    assert len(Signer("s", "q").sign(b"task", b"x")) == 16


def test_the_secret_is_never_sent(new_queue, client, wait_until):
    secret = "of-which-the-server-hears-nothing-4711"
    heard, ready = [], threading.Event()

    def listen():
        with client.monitor() as monitor:
            ready.set()
            for command in monitor.listen():
                heard.append(str(command))
                if "enough of that" in heard[-1]:
                    return

    listener = threading.Thread(target=listen)
    listener.start()
    assert ready.wait(10)
    queue = new_queue(workers=1, secret=secret)
    assert queue.submit(abs, -1).result(30) == 1
    assert queue.map(abs, [-1, -2], name="j").result(30) == [1, 2]
    assert queue.submit(len, queue.put(b"x" * 10)).result(30) == 10
    client.echo("enough of that")
    listener.join(10)
    assert any(queue.name in command for command in heard)
    assert not any(secret in command for command in heard)


@pytest.fixture
def idle(new_queue):
    """A queue without workers."""
    return new_queue(workers=0)


@pytest.fixture
def lane(store):
    return store.keys.lane("default")


class TestSomebodyWhoCanWrite:
    """Without the secret: what the document says that nothing here prevents."""

    def test_reads_what_travels(self, idle, client, lane, store, wait_until):
        idle.submit(len, "nobody's business")
        wait_until(lambda: client.xlen(lane) == 1, describe="the task")
        ((_, fields),) = client.xrange(lane)
        assert b"nobody's business" in fields[b"args"]
        ref = idle.put("a diary")
        pattern = store.keys.value("*").replace("{", "\\{")
        (key,) = wait_until(lambda: [*client.scan_iter(pattern, count=1000)], describe="it")
        assert b"a diary" in client.get(key), ref

    def test_deletes_a_task(self, idle, client, lane, wait_until):
        lost, other = idle.submit(abs, -1), idle.map(abs, [-2])
        wait_until(lambda: client.xlen(lane) == 2, describe="the tasks")
        client.xdel(lane, client.xrange(lane)[0][0])
        idle.run(1)
        assert other.result(30) == [2]
        assert not lost.done()

    def test_cancels_a_task(self, idle, client, store, lane, wait_until):
        future = idle.submit(abs, -1)
        wait_until(lambda: client.xlen(lane) == 1, describe="the task")
        client.hset(store.keys.cancelled, future.id.rpartition("-")[0], "0:1")
        client.hincrby(store.keys.cancelled, "#", 1)
        client.expire(store.keys.cancelled, 60)
        idle.run(1)
        wait_until(future.cancelled, describe="its end")

    def test_pretends_that_there_are_workers(self, idle, client, store):
        description = b'{"node": "n", "host": "h", "pid": 7, "lanes": ["default"]}'
        client.hset(store.keys.workers, "nobody", description)
        client.expire(store.keys.workers, 60)
        assert [worker.id for worker in idle.workers()] == ["nobody"]

    def test_brings_back_an_older_state_of_a_named_job(self, queue, client, store):
        keys = store.keys
        queue.map(abs, [-1], name="j").result(30)
        old = client.hget(keys.jobs, "j").decode()
        parts = [keys.job(old), keys.inputs(old), keys.events(old)]
        kept = [client.dump(key) for key in parts]
        assert queue.map(abs, [-2], name="j", replace=True).result(30) == [2]
        for key, data in zip(parts, kept, strict=True):
            client.restore(key, 60_000, data, replace=True)
        client.hset(keys.jobs, "j", old)
        assert queue.attach("j").result(30) == [1]

    def test_makes_workers_leave(self, start_node, client, store, idle, wait_until):
        node = start_node()
        client.hset(store.keys.meta, "secret", "x")
        status, said = node.wait()
        assert status != 0
        assert "another secret" in said


class TestACopy:
    def test_runs_after_the_supervisor_was_restarted_and_its_result_is_dropped(
        self, new_queue, client, store, lane, tmp_path, wait_until
    ):
        queue, runs = new_queue(workers=0), Runs(tmp_path / "runs")

        def run(x):
            runs.note(x)
            return len(runs.counts), runs.counts[x]

        future = queue.submit(run, 1)
        wait_until(lambda: client.xlen(lane) == 1, describe="the task")
        ((_, copy),) = client.xrange(lane)
        queue.run(1)
        assert future.result(30) == (1, 1)
        (worker,) = queue.workers()
        supervisor = store.workers()[worker.id]["supervisor"]
        os.kill(supervisor, signal.SIGKILL)
        assert queue.submit(abs, -1).result(60) == 1  # a new one has come
        client.xadd(lane, copy)
        wait_until(lambda: runs.counts == {1: 2}, describe="its run: nobody can know")
        assert queue.submit(abs, -2).result(30) == 2
        assert future.result(0) == (1, 1)

    def test_runs_beside_the_first_and_the_call_has_one_result(
        self, new_queue, client, lane, tmp_path, gate, wait_until
    ):
        queue, runs, hold = new_queue(workers=0), Runs(tmp_path / "runs"), gate("hold")
        results = []

        def run(x):
            runs.note(x)
            hold.wait()
            return x

        future = queue.submit(run, 1)
        future.add_done_callback(lambda done: results.append(done.result()))
        wait_until(lambda: client.xlen(lane) == 1, describe="the task")
        ((_, copy),) = client.xrange(lane)
        client.xadd(lane, copy)
        queue.run(2)
        wait_until(lambda: runs.counts == {1: 2}, timeout=30, describe="both")
        hold.open()
        assert future.result(30) == 1
        assert queue.submit(abs, -2).result(30) == 2
        assert results == [1]


def test_a_process_remembers_65000_messages():
    seen, draw = ReplayCache(), random.Random(1)
    signatures = [draw.randbytes(16) for _ in range(2 * N_SEEN)]
    for k, signature in enumerate(signatures):
        assert not seen.is_copy(signature, k) or k > 1000
    assert N_SEEN == 65_536
    copies = [seen.is_copy(signature, "elsewhere") for signature in signatures[-6000:]]
    assert sum(copies) > 5000


def test_the_workers_of_a_machine_remember_a_million_messages(tmp_path):
    with (tmp_path / "ended").open("w+b") as file:
        os.ftruncate(file.fileno(), SETTLED_BYTES)
        ended, others = SettledCache(file.fileno()), SettledCache(file.fileno())
        draw = random.Random(1)
        marks = [draw.getrandbits(64) for _ in range(N_MARKS // 10)]
        for mark in marks:
            settlement = SimpleNamespace(successors=(), delivery=SimpleNamespace(mark=mark))
            ended.add_run(settlement)
            ended.add_settled([settlement], [1])
        known = sum(mark in others for mark in marks)
    assert N_MARKS == 1_048_576
    assert known > 0.9 * len(marks)


def test_a_named_job_is_read_with_the_secret_it_was_made_with(new_queue, queue_name, server_url):
    with TaskQueue(queue_name, server_url, workers=1, secret="old") as queue:
        assert queue.map(abs, [-1], name="j").result(30) == [1]
    with TaskQueue(queue_name, server_url, workers=0, secret="new,old") as queue:
        assert queue.attach("j").result(30) == [1]
    with (
        TaskQueue(queue_name, server_url, workers=0, secret="new") as queue,
        pytest.raises(SignatureError),
    ):
        queue.attach("j")


def test_without_its_keys_a_queue_takes_another_secret(queue_name, server_url, client):
    with TaskQueue(queue_name, server_url, workers=1, secret="leaked") as queue:
        assert queue.map(abs, [-1], name="j").result(30) == [1]
    with pytest.raises(SecretMismatch):
        TaskQueue(queue_name, server_url, workers=0, secret="new")
    pattern = f"nbq2:{{{queue_name}}}:*".replace("{", "\\{")
    client.delete(*client.scan_iter(pattern, count=1000))
    with TaskQueue(queue_name, server_url, workers=1, secret="new") as queue:
        assert queue.map(abs, [-1], name="j").result(30) == [1]
