"""The header of each script says how it is called; here it is held against how it is called."""

import inspect
import re
from pathlib import Path

import pytest

from nbstreamq.wire import scripts
from nbstreamq.wire.keys import Keys, tail_of

FOLDER = Path(scripts.__file__).parent / "lua"
#: Arguments for the parameters of the functions in scripts.py, by type.
SAMPLES = {
    "Keys": Keys("q"),
    "str": "{}",
    "bytes": "{}",
    "int": 1,
    "float": 1.0,
    "dict[str, str]": {},
    "list[Fields]": [[b"f", b"v"]],
}


def header(name):
    return [line for line in scripts.source(name).splitlines() if line.startswith("-- ")]


def body(name):
    return re.sub(r"--.*", "", scripts.source(name))


def documented(name, what):
    """Return the texts of the fixed ``what[i]``, and whether a ``what[i..]`` follows them."""
    found = re.findall(rf"^-- {what}\[(\d+)(\.\.)?\] (.+)$", scripts.source(name), re.M)
    assert [int(i) for i, _, _ in found] == list(range(1, len(found) + 1))
    assert not any(more for _, more, _ in found[:-1]), "only the last may be open"
    return [text for _, more, text in found if not more], bool(found and found[-1][1])


def bound(name):
    """Call the function of a script with as little as it takes, or with sequences of one.

    Returns
    -------
    tuple
        The kinds of its keys, and its arguments; texts are the names of the parameters.
    """
    parameters = inspect.signature(getattr(scripts, name)).parameters.values()
    given = {}
    for p in parameters:
        sample = SAMPLES.get(p.annotation, [])
        given[p.name] = sample.format(p.name) if isinstance(sample, str) else sample
    _, _, n_keys, *rest = getattr(scripts, name)(**given)
    kinds = [(tail_of(key) or key).partition(":")[0] for key in rest[:n_keys]]
    return kinds, rest[n_keys:]


def test_every_script_is_registered_and_has_a_function():
    assert {path.stem for path in FOLDER.glob("*.lua")} == set(scripts.NAMES)
    assert all(callable(getattr(scripts, name)) for name in scripts.NAMES)
    assert len(scripts.texts()) == len(scripts.NAMES)


@pytest.mark.parametrize("name", scripts.NAMES)
def test_a_script_begins_with_what_it_does_and_says_what_it_returns(name):
    assert scripts.source(name).startswith("-- ")
    assert not header(name)[0].startswith("-- KEYS")
    assert any(line.startswith("-- Returns ") for line in header(name))


@pytest.mark.parametrize("name", scripts.NAMES)
def test_keys_are_bound_as_the_header_says(name):
    texts, open_ended = documented(name, "KEYS")
    keys, _ = bound(name)
    assert len(keys) == len(texts) or (open_ended and len(keys) > len(texts))
    for text, kind in zip(texts, keys, strict=False):
        assert kind in text
        assert re.search(r"\((string|hash|list|stream|sorted set)\)$", text)


@pytest.mark.parametrize("name", scripts.NAMES)
def test_arguments_are_bound_as_the_header_says(name):
    texts, open_ended = documented(name, "ARGV")
    _, args = bound(name)
    assert len(args) == len(texts) or (open_ended and len(args) > len(texts))
    for text, argument in zip(texts, args, strict=False):
        if isinstance(argument, str):
            assert argument.partition(":")[0].rpartition("_")[2] in text


@pytest.mark.parametrize("name", scripts.NAMES)
@pytest.mark.parametrize("what", ["KEYS", "ARGV"])
def test_a_script_uses_what_its_header_lists_and_nothing_else(name, what):
    texts, open_ended = documented(name, what)
    used = {int(i) for i in re.findall(rf"{what}\[(\d+)\]", body(name))}
    listed = set(range(1, len(texts) + 1))
    assert used <= listed
    if not (open_ended or re.search(rf"#{what}\b", body(name))):
        assert used == listed


@pytest.mark.parametrize("name", scripts.NAMES)
def test_no_script_makes_up_a_key(name):
    """A cluster wants to be told each key; so keys come from KEYS and are never put together."""
    literals = re.findall(r"'([^']*)'", body(name))
    assert not [text for text in literals if ":" in text or "{" in text]
    joined = re.findall(r"(\S+) \.\. ", body(name))
    assert all(left.endswith("'('") for left in joined)


@pytest.mark.parametrize("name", scripts.NAMES)
def test_a_script_asks_the_server_for_the_time(name):
    assert "os.time" not in body(name)
