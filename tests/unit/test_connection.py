"""URLs become clients, errors tell no passwords, and commands are packed."""

import ssl
import subprocess
import sys
from urllib.parse import quote

import pytest
import redis
from hypothesis import assume, given
from hypothesis import strategies as st

from nbstreamq.errors import ServerUnreachable
from nbstreamq.secret import hide_password
from nbstreamq.wire.addresses import open_client, same_server, url_of
from nbstreamq.wire.connection import pack


def settings_of(url):
    with open_client(url) as client:
        return client.connection_pool.connection_kwargs


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://:pw@h/0", "redis://:***@h/0"),
        ("redis://me:pw@h:1/0", "redis://me:***@h:1/0"),
        ("redis://me:p@w@h:1/0", "redis://me:***@h:1/0"),
        ("redis://me:p/w@h:1/0", "redis://me:***@h:1/0"),
        ("unix://me:pw@/run/s?db=1", "unix://me:***@/run/s?db=1"),
        ("unix:///run/s", "unix:///run/s"),
        ("rediss://h?ssl_password=pw&db=1", "rediss://h?ssl_password=***&db=1"),
        ("unix:///run/s?password=pw&db=1", "unix:///run/s?password=***&db=1"),
        ("redis+sentinel://me:pw@h:1,g:2/main/0", "redis+sentinel://me:***@h:1,g:2/main/0"),
        ("no url", "no url"),
    ],
)
def test_a_password_is_hidden_and_the_rest_is_shown(url, shown):
    assert hide_password(url) == shown


@given(st.text(min_size=4))
def test_no_password_is_ever_shown(password):
    quoted = quote(password, safe="")
    shown = "redis://me:***@/"
    assume(quoted not in shown)
    assert hide_password(f"redis://me:{quoted}@/") == shown


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_a_plain_url_is_a_tcp_connection(scheme):
    known = settings_of(f"{scheme}://me:p%40w@example.org:7000/3")
    assert (known["host"], known["port"], known["db"]) == ("example.org", 7000, 3)
    assert (known["username"], known["password"]) == ("me", "p@w")


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_a_url_with_s_is_encrypted(scheme):
    with open_client(f"{scheme}://example.org") as client:
        assert client.connection_pool.connection_class is redis.SSLConnection


def test_a_unix_url_is_a_socket():
    known = settings_of("unix:///run/some/socket?db=2")
    assert (known["path"], known["db"]) == ("/run/some/socket", 2)


@pytest.mark.parametrize("scheme", ["redis+sentinel", "valkey+sentinel", "rediss+sentinel"])
def test_a_sentinel_url_names_sentinels_service_and_database(scheme):
    with open_client(f"{scheme}://me:p%40w@one:1,two/main/4") as client:
        pool = client.connection_pool
        known = pool.connection_kwargs
        asked = [s.connection_pool.connection_kwargs for s in pool.sentinel_manager.sentinels]
        for sentinel in pool.sentinel_manager.sentinels:
            sentinel.close()
    assert [(k["host"], k["port"]) for k in asked] == [("one", 1), ("two", 26379)]
    assert (pool.service_name, known["db"], known["username"]) == ("main", 4, "me")
    assert known["password"] == "p@w"
    assert issubclass(pool.connection_class, redis.SSLConnection) == (scheme[5] == "s")


def test_a_cluster_that_does_not_answer_is_unreachable():
    with pytest.raises(ServerUnreachable, match=r"redis\+cluster://:\*\*\*@127.0.0.1:1\)"):
        open_client("redis+cluster://:hush@127.0.0.1:1")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://:hush@h",
        "redis://h:port",
        "redis://h:hush/x@h:1",
        "redis://:hush@h?db=x",
        "redis+sentinel://h:1",
        "redis+sentinel://:hush@h:x/main",
        "redis+sentinel://h:1/main/x",
        "redis+other://h",
    ],
)
def test_what_is_no_server_address_is_refused_without_its_password(url):
    with pytest.raises(ValueError, match="is no server address") as refusal:
        open_client(url)
    assert "hush" not in str(refusal.value)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.parametrize(
    "url",
    [
        "redis://example.org:7000/3",
        "rediss://:p%40w@example.org:7000/0",
        "redis://me:p%2Fw@example.org:6379/0",
        "rediss://example.org:6379/0?ssl_ca_certs=%2Fetc%2Fca.pem&ssl_password=hush",
        "rediss://example.org:6379/0?ssl_cert_reqs=none&ssl_check_hostname=false",
        "redis://[::1]:6379/0",
        "unix:///run/some%20socket?db=2",
        "unix://me:pw@/run/socket?db=0",
    ],
)
def test_the_url_of_a_client_reaches_the_same_server(url):
    with open_client(url) as client:
        assert url_of(client).reveal() == url


def test_the_url_of_a_client_with_tls_says_only_what_is_unusual():
    with redis.Redis(host="h", ssl=True) as client:
        assert url_of(client).reveal() == "rediss://h:6379/0"
    with redis.Redis(host="h", ssl=True, ssl_cert_reqs=ssl.CERT_OPTIONAL) as client:
        assert url_of(client).reveal() == "rediss://h:6379/0?ssl_cert_reqs=optional"


@pytest.mark.parametrize(
    ("url", "other", "same"),
    [
        ("redis://me:***@h:1/0", "redis://you:pw@h:1/0", True),
        ("redis://me:p@w@h:1/0", "redis://h:1/0", True),
        ("unix://me:pw@/run/s?db=1", "unix:///run/s?db=1", True),
        ("redis://me@h:1/0", "redis://me@g:1/0", False),
        ("redis://me@h:1/0", "redis://me@h:1/1", False),
        ("redis://h:1/0", "rediss://h:1/0", False),
    ],
)
def test_a_server_is_the_same_whoever_logs_in(url, other, same):
    assert same_server(url, other) is same


def test_a_client_made_by_sentinel_has_no_url():
    with (
        open_client("redis+sentinel://h:1/main") as client,
        pytest.raises(ValueError, match="give TaskQueue a url"),
    ):
        url_of(client)


INTERRUPTED = """
import signal
from nbstreamq.wire.connection import pack

def interrupt(*_):
    raise KeyboardInterrupt

n = 0
signal.signal(signal.SIGALRM, interrupt)
command = ("XADD", "key", *range(50))
while n < 500:
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4)
        while True:
            pack(command)
    except KeyboardInterrupt:
        n += 1
print("fine")
"""


def test_all_kinds_of_words():
    words = ("XADD", b"\xff", 12, -1, 0.5, "é")
    assert pack(words) == (
        b"*6\r\n$4\r\nXADD\r\n$1\r\n\xff\r\n$2\r\n12\r\n$2\r\n-1\r\n$3\r\n0.5\r\n$2\r\n\xc3\xa9\r\n"
    )


def test_several_commands_are_joined_and_packed_ones_are_kept():
    ping = pack(("PING",))
    assert pack(ping, ("GET", "key"), ping) == ping + pack(("GET", "key")) + ping


def test_half_a_surrogate_pair_is_escaped():
    assert pack(("GET", "a\ud800", b"\xff")) == pack(("GET", "a\\ud800", b"\xff"))


def test_an_interrupt_meanwhile_does_not_crash_the_process():
    command = [sys.executable, "-c", INTERRUPTED]
    assert subprocess.check_output(command, text=True, timeout=30) == "fine\n"
