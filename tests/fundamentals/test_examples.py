"""The examples of the public docstrings run, and print what they say."""

from __future__ import annotations

import doctest
import inspect

import pytest

import nbstreamq
from nbstreamq import TaskFuture


def documented():
    """Yield name, docstring of each public object, and of each public method of classes."""
    for name in nbstreamq.__all__:
        public = getattr(nbstreamq, name)
        yield name, inspect.getdoc(public)
        if inspect.isclass(public) and public.__module__.startswith("nbstreamq.client"):
            for key, member in vars(public).items():
                if not key.startswith("_") or key == "__call__":
                    yield f"{name}.{key}", inspect.getdoc(member)


DOCUMENTED = dict(documented())
WITH_EXAMPLES = {name: text for name, text in DOCUMENTED.items() if text and ">>>" in text}


@pytest.fixture
def names(q, server_url, monkeypatch):
    """What a reader of an example has: the public names, a queue `q`, and a server."""
    monkeypatch.setenv("NBSTREAMQ_URL", server_url)
    public = {name: getattr(nbstreamq, name) for name in nbstreamq.__all__}
    return {**public, "nbstreamq": nbstreamq, "q": q, "__name__": "__main__"}


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_an_example_prints_what_it_says(name, names):
    text = WITH_EXAMPLES[name]
    assert "+SKIP" not in text
    example = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
    printed = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=printed.append)
    assert result.failed == 0, "".join(printed)


def test_tab_shows_what_users_use(q):
    hidden = {"session", "table", "survey", "add_worker", "reduce_for_task", "reduce_durable"}
    job, call = q.map(abs, [1]), q.submit(abs, 1)
    assert not hidden & {*dir(q), *dir(job), *dir(job[0]), *dir(q.put(1))}
    assert {name for name in dir(call) if name[0] != "_"} <= {*dir(TaskFuture)}


def test_every_method_has_an_example():
    simple = {"closed", "id", "name", "set_result"}
    members = {name for name in DOCUMENTED if "." in name and name.split(".")[1] not in simple}
    classes = ("TaskQueue.", "Job.", "TaskFuture.")
    assert sorted(n for n in members - WITH_EXAMPLES.keys() if n.startswith(classes)) == []


def test_everything_public_has_a_docstring():
    assert [name for name, text in DOCUMENTED.items() if not text] == []
