"""What a server says of itself, and what of it endangers tasks."""

import re

import pytest

from nbstreamq.wire.addresses import open_client
from nbstreamq.wire.records import ServerFacts
from nbstreamq.wire.signing import Signer
from nbstreamq.wire.store import Store

SOUND = {"version": "9.0.0", "product": "Valkey", "saves": True, "policy": "noeviction"}


@pytest.fixture
def store_on(start_server):
    """``store_on(*options, login="")``: a queue on a server of its own."""
    stores = []

    def store_on(*options, login=""):
        server = start_server(*options)
        url = server.url.replace("://", f"://{login}@") if login else server.url
        stores.append(Store(open_client(url), "q", Signer("secret", "q")))
        return stores[-1]

    yield store_on
    for store in stores:
        store.close()


def test_a_server_that_is_set_up_well_has_no_problems(store_on):
    facts = store_on("--maxmemory", "500mb", "--appendonly", "yes").server_facts()
    assert facts.problems() == []
    assert facts.limit_bytes == 500 * 2**20
    assert 0 < facts.used_bytes < facts.limit_bytes
    assert (facts.policy, facts.saves) == ("noeviction", True)
    assert re.match(r"\d+\.\d+", facts.version)


@pytest.mark.parametrize(
    ("options", "saves"),
    [
        (("--save", "", "--appendonly", "no"), False),
        (("--save", "", "--appendonly", "yes"), True),
        (("--save", "3600 1", "--appendonly", "no"), True),
    ],
)
def test_whether_a_server_saves(store_on, options, saves):
    facts = store_on(*options).server_facts()
    assert facts.saves is saves
    assert any("disk" in text for text in facts.problems()) is not saves


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random"])
def test_a_server_that_drops_data(store_on, policy):
    options = ("--maxmemory-policy", policy)
    (problem,) = store_on(*options, "--maxmemory", "100mb").server_facts().problems()
    assert policy in problem
    assert "noeviction" in problem
    assert store_on(*options).server_facts().problems() == []  # its memory has no limit


def test_a_server_that_is_nearly_full(store_on):
    store = store_on()
    used = store.server_facts().used_bytes
    store.wire.call(("CONFIG", "SET", "maxmemory", used + used // 10))
    (problem,) = store.server_facts().problems()
    assert re.search(r"memory is [89]\d% full", problem)
    store.wire.call(("CONFIG", "SET", "maxmemory", 2 * used))
    assert store.server_facts().problems() == []


@pytest.mark.parametrize(
    ("forbidden", "policy", "saves"),
    [
        (("-config",), "allkeys-lru", None),
        (("-info",), None, None),
        (("-config", "-info"), None, None),
    ],
)
def test_what_a_managed_server_does_not_tell_is_no_problem(store_on, forbidden, policy, saves):
    user = f"user me on >pw ~* &* +@all {' '.join(forbidden)}"
    store = store_on(
        "--save", "", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru", *_acl(user),
        login="me:pw",
    )  # fmt: skip
    facts = store.server_facts()
    assert (facts.policy, facts.saves) == (policy, saves)
    assert [text.split(":")[0] for text in facts.problems()] == (
        ["the server drops data when its memory is full"] if policy else []
    )


def _acl(user):
    """The options of a server that has this user."""
    _, name, *rules = user.split()
    return ("--user", name, *rules)


@pytest.mark.parametrize(
    ("product", "version", "is_old"),
    [("Redis", "6.2.1", True), ("Redis", "7.0.0", False), ("Valkey", "7.2.5", True)],
)
def test_a_server_that_is_too_old(product, version, is_old):
    facts = ServerFacts(**SOUND | {"product": product, "version": version})
    assert bool(facts.problems()) is is_old


def test_a_server_that_tells_nothing_has_no_problems():
    assert ServerFacts().problems() == []


def test_an_exchange_takes_time_and_clocks_of_one_machine_agree(store):
    assert 0 < store.ping() < 1
    assert abs(store.clock_skew()) < 1
