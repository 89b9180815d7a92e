"""Which URLs of servers are taken; what is wrong with the others is said without their password."""

import pytest

from nbstreamq.wire.addresses import check_url


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h:6379/0",
        "redis://:hush@h/15",
        "redis://me:hush%2F%23@[::1]:6379/",
        "valkeys://h?ssl_cert_reqs=none&ssl_check_hostname=false",
        "redis://h?socket_timeout=5&client_name=lab",
        "unix:///run/redis.sock?db=2",
        "unix://me:hush@/run/redis%20server.sock",
        "redis+cluster://h:7000",
        "redis+sentinel://a:26379,b/main/3",
    ],
)
def test_these_are_taken(url):
    assert check_url("url", url).reveal() == url


@pytest.mark.parametrize(
    ("url", "what"),
    [
        (":hush@h:6379", "must start with redis://"),
        ("http://me:hush@h", "must start with redis://"),
        ("redis:/h", "must start with redis://"),
        ("redis://", "names no host"),
        ("redis://:6379", "names no host"),
        ("redis://:hu/sh@h", "no host"),
        ("redis://:hu#sh@h", "no host"),
        ("redis://:hush@h:port", "port must be a number"),
        ("redis://:hush@h:0", "port must be a number from 1"),
        ("redis://:hush@h:70000", "port must be a number from 1 to 65,535"),
        ("redis://:hush@h/abc", "database, 'abc', must be a number"),
        ("redis://:hush@h/-1", "must be a number"),
        ("redis://:hush@h/0/1", "must be a number"),
        ("redis://:hush@h?foo=bar", "option 'foo' is not known: it takes client_name"),
        ("redis://h?password=hush&protocol=3", "option 'protocol' is not known"),
        ("redis://:hush@h?db=x", "option db must be a number"),
        ("redis://:hush@h?db=1&db=2", "option db is given twice"),
        ("redis://:hush@h?socket_timeout=nan", "option socket_timeout must be a number of seconds"),
        ("redis://:hush@h?ssl_ca_certs=/etc/ca.pem", "option 'ssl_ca_certs' is not known"),
        ("rediss://:hush@h?ssl_ca_certs=/no/such.pem", "ssl_ca_certs names '/no/such.pem'"),
        ("rediss://:hush@h?ssl_cert_reqs=maybe", "must be none, optional or required"),
        ("unix://run/redis.sock", "no absolute path of a socket"),
        ("unix://", "no absolute path of a socket"),
        ("unix:///" + 120 * "x", "at most 103 bytes"),
        ("unix:///a%00b", "no NUL"),
        ("redis+sentinel://:hush@h:26379", "names no service"),
        ("redis+sentinel://:hush@h,:1/main", "names no host"),
        ("redis+sentinel://:hush@h/main?db=1", "it takes none"),
        ("redis://[::1", "malformed"),
        ("redis://h/\0", "no NUL"),
        ("redis://h/\udcff", "no lone surrogate"),
        ("", "not be empty"),
    ],
)
def test_what_is_wrong_is_said_but_not_the_password(url, what):
    with pytest.raises(ValueError, match=r"^url ") as caught:
        check_url("url", url)
    text = str(caught.value)
    assert what in text
    assert "hush" not in text
    assert "sh@" not in text
    assert len(text) < 500


@pytest.mark.parametrize("url", [None, 6379, b"redis://h", ["redis://h"]])
def test_another_type_is_a_type_error(url):
    with pytest.raises(TypeError, match="url is of type"):
        check_url("url", url)
