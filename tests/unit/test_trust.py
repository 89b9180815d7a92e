"""Which servers are local, and what happens without a secret to those that are not."""

import dataclasses

import pytest
import redis

from nbstreamq.errors import SecretMissing, SecretTooWeak
from nbstreamq.secret import Secret
from nbstreamq.settings import Settings
from nbstreamq.wire.addresses import url_of
from nbstreamq.wire.trust import choose_secret, is_local, new_secret

REMOTE = "redis://me:hush@db.example.org:6379/0"


@pytest.fixture
def settings(tmp_path):
    return dataclasses.replace(Settings.from_environment(), secret=None, data_dir=tmp_path / "data")


@pytest.mark.parametrize(
    "url",
    [
        "unix:///run/s",
        "unix://me:pw@/run/s?db=1",
        "redis://localhost",
        "redis://LOCALHOST:6379/0",
        "redis://",
        "redis://127.0.0.1:6379",
        "valkey://127.3.2.1",
        "rediss://me:pw@[::1]:6379/0",
    ],
)
def test_sockets_and_loopback_addresses_are_local(url):
    assert is_local(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://db.example.org",
        "rediss://db.example.org",
        "valkey://10.0.0.1",
        "redis://0.0.0.0",
        "redis://128.0.0.1",
        "redis://[2001:db8::1]",
        "redis://localhost.example.org",
        "redis://localhost@db.example.org",
        "redis://127.0.0.1@db.example.org",
        "redis://%64b.example.org",
        "redis:///0?host=db.example.org",
        "redis+sentinel://localhost/main",
        "redis+cluster://localhost",
    ],
)
def test_all_other_addresses_are_not(url):
    assert not is_local(url)


@pytest.mark.parametrize(("host", "local"), [("::1", True), ("2001:db8::1", False)])
def test_the_address_of_a_client_is_judged_too(host, local):
    with redis.Redis(host=host) as client:
        assert is_local(url_of(client)) is local


def test_a_remote_server_without_a_secret_is_refused_with_two_lines_that_help(settings):
    with pytest.raises(SecretMissing) as caught:
        choose_secret(settings, REMOTE)

    text = str(caught.value)
    assert "\n    nbstreamq secret\n    export NBSTREAMQ_SECRET=" in text
    assert "db.example.org" in text
    assert "hush" not in text
    assert not settings.data_dir.exists()


def test_a_key_file_that_is_there_does_not_count(settings):
    kept = choose_secret(settings, None)
    with pytest.raises(SecretMissing):
        choose_secret(settings, REMOTE)
    assert choose_secret(settings, REMOTE, insecure=True) == kept


@pytest.mark.parametrize("insecure", [True, False])
def test_a_secret_that_is_given_signs(settings, insecure):
    one, other = Secret(new_secret()), Secret(new_secret())
    known = dataclasses.replace(settings, secret=one)
    assert choose_secret(known, REMOTE, insecure=insecure) == one
    assert choose_secret(known, REMOTE, secret=other, insecure=insecure) == other


@pytest.mark.parametrize("url", [None, "unix:///run/s", REMOTE])
@pytest.mark.parametrize("secret", ["", " ", ",", " , "])
def test_an_empty_secret_is_refused_wherever_the_server_is(settings, url, secret):
    with pytest.raises(SecretTooWeak, match="nbstreamq secret"):
        choose_secret(settings, url, secret=secret)


@pytest.mark.parametrize("secret", ["x", "secret", "x" * 64, "ab" * 32, "0123456789abcdef"])
def test_a_secret_that_can_be_guessed_is_refused_for_a_remote_server(settings, secret):
    strong = new_secret()
    for given in (secret, f"{strong},{secret}", f"{secret},{strong}"):
        with pytest.raises(SecretTooWeak, match="nbstreamq secret"):
            choose_secret(settings, REMOTE, secret=given)
        with pytest.raises(SecretTooWeak):
            choose_secret(dataclasses.replace(settings, secret=Secret(given)), REMOTE)


@pytest.mark.parametrize(
    "secret",
    [
        "3f0a9c5be2714d68bb10c7f2a94e5d03",
        "Zk3v_Qw8Lr-T1xYp0sNfBg",
        "correct horse battery staple",
    ],
)
def test_sixteen_random_bytes_will_do(settings, secret):
    assert choose_secret(settings, REMOTE, secret=secret).reveal() == secret


@pytest.mark.parametrize("url", [None, "unix:///run/s", "redis://127.0.0.1"])
def test_a_local_server_needs_none(settings, url):
    assert choose_secret(settings, url).reveal() == (settings.data_dir / "secret").read_text()


def test_new_secrets_are_long_and_differ():
    assert len(bytes.fromhex(new_secret())) == 32
    assert new_secret() != new_secret()
