"""Signatures, and the secret they are made with."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nbstreamq.errors import SecretTooWeak, SignatureError
from nbstreamq.secret import Secret
from nbstreamq.settings import Settings
from nbstreamq.wire.signing import SIGNATURE_BYTES, Signer, load_secret

SIGNER = Signer("secret", "sims")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings(tmp_path):
    return replace(Settings.from_environment(), secret=None, data_dir=tmp_path / "data")


@given(st.binary(), st.binary())
def test_what_was_sealed_is_unsealed(name, data):
    sealed = SIGNER.seal(b"value", name, data)
    assert SIGNER.unseal(b"value", name, sealed) == data
    assert len(sealed) == SIGNATURE_BYTES + len(data)


@given(st.binary(), st.data())
def test_sealed_data_with_a_flipped_bit_is_refused(data, draw):
    sealed = bytearray(SIGNER.seal(b"value", b"x", data))
    sealed[draw.draw(st.integers(0, len(sealed) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    with pytest.raises(SignatureError):
        SIGNER.unseal(b"value", b"x", bytes(sealed))


@given(st.binary(max_size=SIGNATURE_BYTES + 2))
def test_sealed_data_cut_short_is_refused(sealed):
    with pytest.raises(SignatureError):
        SIGNER.unseal(b"value", b"x", sealed)


def test_sealed_data_is_bound_to_its_kind_and_name():
    sealed = SIGNER.seal(b"value", b"x", b"data")
    for kind, name in ((b"function", b"x"), (b"value", b"y")):
        with pytest.raises(SignatureError):
            SIGNER.unseal(kind, name, sealed)


@given(st.lists(st.binary(), max_size=4), st.lists(st.binary(), max_size=4))
def test_different_parts_have_different_signatures(parts, others):
    assume(parts != others)
    assert SIGNER.sign(b"task", *parts) != SIGNER.sign(b"task", *others)


def test_parts_can_not_be_shifted_into_each_other():
    assert SIGNER.sign(b"task", b"ab", b"c") != SIGNER.sign(b"task", b"a", b"bc")
    assert SIGNER.sign(b"task", b"") != SIGNER.sign(b"task")
    assert SIGNER.sign(b"ta", b"sk") != SIGNER.sign(b"task")


def test_a_fingerprint_tells_secrets_apart_and_is_stable():
    (mine,) = SIGNER.fingerprints()
    assert Signer("secret", "sims").fingerprints() == [mine]
    assert Signer("other", "sims").fingerprints() != [mine]
    assert Signer("other, secret", "sims").fingerprints()[1:] == [mine]


def test_the_first_of_several_secrets_signs_and_all_are_accepted():
    old, new = Signer("old", "sims"), Signer("new", "sims")
    both = Signer(" new , old,", "sims")
    assert both.seal(b"value", b"x", b"data") == new.seal(b"value", b"x", b"data")
    for signer in (old, new, both):
        assert both.unseal(b"value", b"x", signer.seal(b"value", b"x", b"data")) == b"data"
    with pytest.raises(SignatureError):
        both.unseal(b"value", b"x", Signer("older", "sims").seal(b"value", b"x", b"data"))
    with pytest.raises(SignatureError):
        old.unseal(b"value", b"x", both.seal(b"value", b"x", b"data"))


def test_the_secret_is_in_no_repr():
    assert "hush" not in repr(Signer("hush", "sims"))


def test_the_environment_s_secret_wins_over_the_file(settings):
    settings = replace(settings, secret=Secret("from the environment"))
    assert load_secret(settings) == Secret("from the environment")
    assert not settings.data_dir.exists()


def test_a_new_key_file_is_private_and_is_used_again(settings):
    secret = load_secret(settings)
    file = settings.data_dir / "secret"
    assert len(bytes.fromhex(secret.reveal())) == 32
    assert file.stat().st_mode & 0o777 == 0o600
    assert settings.data_dir.stat().st_mode & 0o777 == 0o700
    assert load_secret(settings) == secret
    assert list(settings.data_dir.iterdir()) == [file]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_key_file_that_others_can_read_is_refused(settings, mode):
    load_secret(settings)
    (settings.data_dir / "secret").chmod(mode)
    with pytest.raises(PermissionError, match="chmod 600"):
        load_secret(settings)


def test_processes_that_race_get_the_same_secret(settings):
    settings.data_dir.mkdir()
    program = (
        "import sys, pathlib, dataclasses\n"
        "from nbstreamq.wire.signing import load_secret\n"
        "from nbstreamq.settings import Settings\n"
        "here = dataclasses.replace(Settings.from_environment(), secret=None,\n"
        "                           data_dir=pathlib.Path(sys.argv[1]))\n"
        "print('ready', flush=True); sys.stdin.readline(); print(load_secret(here).reveal())\n"
    )
    command = [sys.executable, "-c", program, str(settings.data_dir)]
    pipe = subprocess.PIPE
    racers = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) for _ in range(4)
    ]
    assert [r.stdout.readline() for r in racers] == ["ready\n"] * 4
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    secrets = {racer.communicate()[0] for racer in racers}
    assert secrets == {load_secret(settings).reveal() + "\n"}


@pytest.mark.parametrize("text", ["", " ", "\n", ",", "x", "0" * 64, "0123456789abcdef", "ab,"])
def test_a_key_file_that_can_be_guessed_is_refused(settings, text):
    load_secret(settings)
    (settings.data_dir / "secret").write_text(text)
    with pytest.raises(SecretTooWeak, match="nbstreamq secret"):
        load_secret(settings)


def test_a_key_file_that_is_a_link_is_refused(settings, tmp_path):
    load_secret(settings)
    file = settings.data_dir / "secret"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="is a link"):
        load_secret(settings)


def test_a_key_file_that_is_a_pipe_is_refused_at_once(settings):
    settings.data_dir.mkdir(mode=0o700)
    os.mkfifo(settings.data_dir / "secret", 0o600)
    with pytest.raises(PermissionError, match="not a file of this user"):
        load_secret(settings)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_key_file_of_another_user_is_refused(settings):
    load_secret(settings)
    os.chown(settings.data_dir / "secret", 12345, 12345)
    with pytest.raises(PermissionError, match="not a file of this user"):
        load_secret(settings)
