"""`help`, `?` and Tab show what users use, and no more."""

from __future__ import annotations

import inspect
import pydoc
import re

import pytest

from nbstreamq import TaskFuture

#: What the classes that they extend offer, and what help says of every class.
FROM_FUTURE = {"set_exception", "set_result", "set_running_or_notify_cancel"}
FUTURE = (
    "add_done_callback attempts cancel cancelled done exception id logs progress replay result"
    " running status timing worker"
)
MEMBERS = {
    "queue": "attach closed dead everywhere joblib jobs limit logs map name options pool put run"
    " shutdown size starmap status submit task workers",
    "job": "add_done_callback as_completed cancel close counts delete done errors estimate id"
    " keep logs name result retry_failed to_frame wait",
    "pool": "apply apply_async close imap imap_unordered join map map_async size starmap"
    " starmap_async terminate",
    "pool result": "get ready successful wait",
    "ref": "digest size_bytes type_name",
    "call": FUTURE,
    "item": FUTURE,
}


@pytest.fixture
def public(shared_queue):
    q, pool = shared_queue, shared_queue.pool()
    job = q.map(abs, [-1])
    return {
        "queue": q,
        "job": job,
        "pool": pool,
        "pool result": pool.apply_async(abs, (-1,)),
        "ref": q.put(1),
        "call": q.submit(abs, -1),
        "item": job[0],
    }


def in_help(value):
    """Return the public members that help describes."""
    lines = pydoc.plain(pydoc.render_doc(value))
    return set(re.findall(r"(?m)^ \|  ([a-z]\w*)(?:\(.*)?$", lines))


@pytest.mark.parametrize("kind", MEMBERS)
def test_only_what_users_use_is_shown(public, kind):
    value, expected = public[kind], set(MEMBERS[kind].split())
    assert {name for name in dir(value) if name[0] != "_"} == expected
    arguments = set(inspect.signature(type(value)).parameters)
    assert in_help(value) - arguments - FROM_FUTURE <= expected
    for name in expected & set(dir(type(value))):
        assert inspect.getdoc(getattr(type(value), name)), name


def test_a_future_of_any_kind_reads_like_a_task_future(public):
    _, _, expected = pydoc.render_doc(TaskFuture).partition("\n")
    for kind in ("call", "item"):
        assert inspect.getdoc(public[kind]) == inspect.getdoc(TaskFuture)
        assert pydoc.render_doc(public[kind]).endswith(expected)
