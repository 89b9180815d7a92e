"""Which secret signs, and where a server is so far away that one must be given."""

from __future__ import annotations

import ipaddress
import secrets

from ..errors import SecretMissing, SecretTooWeak
from ..secret import Address, Secret
from ..settings import Settings
from .addresses import host_of
from .signing import load_secret


def new_secret() -> str:
    """Return a fresh random secret: 256 bits, in hexadecimal digits."""
    return secrets.token_hex(32)


def is_local(url: Address | str) -> bool:
    """Return whether only this machine can reach the server at `url`, as far as the url tells.

    A cluster and a Sentinel name other servers by themselves: they never count as local.
    """
    host = host_of(url)
    if host is None:
        return False
    if host.lower() in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def choose_secret(
    settings: Settings,
    url: Address | str | None,
    *,
    secret: Secret | str | None = None,
    insecure: bool = False,
) -> Secret:
    """Return the secret that signs the messages of a queue.

    Parameters
    ----------
    url
        Of its server; None: the embedded one.
    secret
        Given as an argument; None: ``$NBSTREAMQ_SECRET``, else this machine's key file.
    insecure
        Whether the key file will do for a server that other machines can reach.

    Raises
    ------
    SecretMissing
        Other machines can reach the server, and no secret was given. Nothing was sent.
    SecretTooWeak
        One was given, and it is empty; or others can reach the server, and could guess it.
    """
    url = None if url is None else Address(url)
    secret = None if secret is None else Secret(secret)
    is_networked = url is not None and not is_local(url)
    given = settings.secret if secret is None else secret
    if given is not None:
        _check(given, is_networked=is_networked)
        return given
    if is_networked and not insecure:
        raise SecretMissing(
            f"No secret was given for {url}, which other machines can reach: only a"
            " secret that clients and workers share keeps others from running code on them. Make"
            " one, and set it here and wherever workers run:\n"
            "    nbstreamq secret\n"
            "    export NBSTREAMQ_SECRET=...    # or TaskQueue(..., secret=...)\n"
            "To sign with the key file of this machine all the same, which workers on others don't"
            " have: TaskQueue(..., insecure=True), nbstreamq worker --insecure."
        )
    return load_secret(settings)


def _check(secret: Secret, *, is_networked: bool) -> None:
    if not secret.parts():
        raise SecretTooWeak(
            "The secret is empty. Give what `nbstreamq secret` prints, to all clients and workers;"
            " or none: then a server on this machine is used with this machine's key file."
        )
    if is_networked and not secret.is_strong():
        raise SecretTooWeak(
            "The secret is too short, or not random, for a server that other machines can reach:"
            " who reads one message there could guess it, and run code. It takes at least 16"
            " random bytes, such as 32 hexadecimal digits; so does each part of `new,old`."
            " `nbstreamq secret` prints a good one."
        )
