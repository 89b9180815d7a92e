"""Which URLs of servers are taken: redis-py ignores half of what is wrong with one.

It reads ``redis://h/abc`` as database 0, and tells of an unknown option, or a missing file of
certificates, when it connects, without its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ..arguments import MAX_SECONDS, check_text, shown
from ..secret import Address

__all__ = ["check_url"]

#: Bytes of a socket's path that both Linux (107) and macOS (103) take.
_SOCKET_BYTES = 103
_EXAMPLE = "redis://host:6379/0"
_SCHEMES = frozenset(
    prefix + rest
    for prefix in ("redis", "valkey")
    for rest in ("", "s", "+cluster", "s+cluster", "+sentinel", "s+sentinel")
) | {"rediss", "unix"}


def check_url(parameter: str, value: Any) -> Address:
    """Return the URL of a server; ValueError, without the password, if it is malformed.

    Parameters
    ----------
    parameter
        Where it was given, for the message: ``"url"``, ``"NBSTREAMQ_URL"``.
    """
    url = Address(check_text(parameter, value, f"a URL, such as {_EXAMPLE}"))
    try:
        problem = _problem(url.reveal())
    except ValueError:  # of urlsplit; its text may hold a part of the password
        problem = f"it is malformed; a server's URL looks like {_EXAMPLE}"
    if problem:
        raise ValueError(f"{parameter} is {str(url)[:200]!r}: {problem}.")
    return url


def _problem(url: str) -> str:
    """Return what is wrong with a URL, as a clause; empty if nothing is."""
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme not in _SCHEMES:
        return (
            "it must start with redis://, rediss://, unix://, valkey://, valkeys://,"
            " redis+cluster:// or redis+sentinel://"
        )
    parts = urlsplit(url)
    path, host = unquote(parts.path), parts.netloc.rpartition("@")[2]
    if scheme == "unix":
        problem = _of_socket(host, path)
    elif "+sentinel" in scheme:
        service, _, database = path.strip("/").partition("/")
        problem = _of_hosts(host.split(",")) or _of_database(database)
        if not service:
            problem = "it names no service, as in redis+sentinel://host:port/service"
    else:
        problem = _of_hosts([host]) or _of_database(path.removeprefix("/").removesuffix("/"))
    return problem or _of_options(scheme, parts.query)


def _of_hosts(hosts: Sequence[str]) -> str:
    for host in hosts:
        name, colon, port = (host, "", "") if host.endswith("]") else host.rpartition(":")
        if not (name if colon else host):
            return (
                f"it names no host, as in {_EXAMPLE}. In a password, / ? # and @ are written %2F"
                " %3F %23 and %40"
            )
        if colon and not (_is_number(port) and 0 < int(port) < 2**16):
            return f"its port must be a number from 1 to 65,535, as in {_EXAMPLE}"
    return ""


def _of_database(database: str) -> str:
    if database and not _is_number(database):
        return f"its database, {shown(database)}, must be a number, as in {_EXAMPLE}"
    return ""


def _of_socket(host: str, path: str) -> str:
    if host or not path.strip("/"):
        return "it has no absolute path of a socket, as in unix:///run/redis.sock"
    if len(os.fsencode(path)) > _SOCKET_BYTES or "\0" in path:
        return f"the path of a socket has at most {_SOCKET_BYTES} bytes, and no NUL"
    return ""


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


# -- options -----------------------------------------------------------------------------------


def _of_options(scheme: str, query: str) -> str:
    known = dict(_TEXTS | _NUMBERS)
    if scheme in ("rediss", "valkeys", "rediss+cluster", "valkeys+cluster"):
        known |= _OF_TLS
    if "+sentinel" in scheme:
        known = {}
    seen = set()
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            allowed = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            return f"its option {shown(name)} is not known: {allowed}"
        if name in seen:
            return f"its option {name} is given twice"
        if problem := known[name](text):
            return f"its option {name} {problem}"
        seen.add(name)
    return ""


def _any(_text: str) -> str:
    return ""


def _number(text: str) -> str:
    return "" if _is_number(text) else "must be a number"


def _seconds(text: str) -> str:
    try:
        is_time = 0 < float(text) <= MAX_SECONDS
    except ValueError:
        is_time = False
    return "" if is_time else f"must be a number of seconds above 0, up to {MAX_SECONDS:,}"


def _file(text: str) -> str:
    is_there = "\0" not in text and Path(text).is_file() and os.access(text, os.R_OK)
    return "" if is_there else f"names {text!r}, which is no file that can be read"


def _folder(text: str) -> str:
    is_there = "\0" not in text and Path(text).is_dir()
    return "" if is_there else f"names {text!r}, which is no folder"


def _flag(text: str) -> str:
    words = ("true", "false", "yes", "no", "1", "0")
    return "" if text.lower() in words else "must be true or false"


def _requires(text: str) -> str:
    words = ("none", "optional", "required")
    return "" if text in words else "must be none, optional or required"


_Check = Callable[[str], str]
_TEXTS: dict[str, _Check] = dict.fromkeys(("username", "password", "client_name"), _any)
_NUMBERS: dict[str, _Check] = {
    "db": _number,
    "socket_timeout": _seconds,
    "socket_connect_timeout": _seconds,
    "socket_keepalive": _flag,
}
_OF_TLS: dict[str, _Check] = {
    "ssl_ca_certs": _file,
    "ssl_ca_path": _folder,
    "ssl_certfile": _file,
    "ssl_keyfile": _file,
    "ssl_password": _any,
    "ssl_cert_reqs": _requires,
    "ssl_check_hostname": _flag,
    "ssl_ciphers": _any,
}
