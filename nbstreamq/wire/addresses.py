"""Addresses of servers: checks of URLs, and redis-py's clients for them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from ..arguments import MAX_SECONDS, check_text, shown
from ..secret import Address, Secret, hide_password, without_frames
from .replies import translate

if TYPE_CHECKING:
    import redis

    Client: TypeAlias = redis.Redis | redis.RedisCluster
else:
    Client = object  #: A redis-py client; the name is for annotations only.

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


def _certificate(text: str) -> str:
    return "" if text.startswith("-----BEGIN CERTIFICATE") else "must be a certificate, as PEM"


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
    "ssl_ca_data": _certificate,
    "ssl_ca_path": _folder,
    "ssl_certfile": _file,
    "ssl_keyfile": _file,
    "ssl_password": _any,
    "ssl_cert_reqs": _requires,
    "ssl_check_hostname": _flag,
    "ssl_ciphers": _any,
}


# -- clients of redis-py ---------------------------------------------------------------------------

#: Seconds to wait for a reply, beyond the time a command may block. Longer tolerates a slower
#: server; shorter notices a cut network sooner.
REPLY_TIMEOUT = 10.0
#: Seconds to wait for a connection.
CONNECT_TIMEOUT = 5.0
#: redis-py's names of the files, and their password, that a connection with TLS may need.
_TLS_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password")


def check_client(parameter: str, value: Any) -> None:
    """Raise TypeError unless `value` is a client of redis-py that is not asynchronous."""
    import redis

    if not isinstance(value, redis.Redis | redis.RedisCluster):
        raise TypeError(
            f"{parameter} is {shown(value)}: it must be a redis.Redis or a redis.RedisCluster"
        )


def same_server(url: Address | str, other: Address | str) -> bool:
    """Return whether both lead to the same database, with any login."""
    return _without_login(Address(url)) == _without_login(Address(other))


def _without_login(url: Address) -> str:
    return re.sub(r"://[^/]*@", "://", url.reveal())


def open_client(url: Address | str) -> Client:
    """Return a redis-py client for `url`; nothing is sent yet, except to a cluster or a sentinel.

    Parameters
    ----------
    url
        ``redis://``, ``rediss://`` (TLS), ``unix://``, the same with ``valkey`` for ``redis``;
        ``redis+cluster://host:port``, or ``redis+sentinel://host:port,host:port/service/db``.

    Raises
    ------
    ValueError
        The URL is of none of these forms.
    ServerUnreachable
        No node of the cluster answers.
    """
    import redis

    url = Address(url)
    scheme = url.reveal().partition("://")[0].replace("valkey", "redis")
    rest = Secret(url.reveal().partition("://")[2])
    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_timeout": REPLY_TIMEOUT,
        "protocol": 2,
    }
    try:
        if scheme in ("redis+cluster", "rediss+cluster"):
            return redis.RedisCluster.from_url(
                f"{scheme.partition('+')[0]}://{rest.reveal()}", **options
            )
        if scheme in ("redis+sentinel", "rediss+sentinel"):
            return _sentinel_client(f"{scheme}://{rest.reveal()}", options)
        if scheme in ("redis", "rediss", "unix"):
            return redis.Redis.from_url(f"{scheme}://{rest.reveal()}", **options)
    except (redis.RedisError, redis.RedisClusterException) as error:
        raise translate(error, str(url)) from without_frames(error)
    except ValueError:
        # Not chained: the text of the cause may hold a part of the password.
        raise ValueError(
            f"{hide_password(url)!r} is no server address: look at its port, service and options."
        ) from None
    raise ValueError(
        f"{hide_password(url)!r} is no server address. Known are redis://, rediss://, unix://,"
        " valkey://, valkeys://, redis+cluster:// and redis+sentinel://."
    )


def host_of(url: Address | str) -> str | None:
    """Return the host that `url` leads to, or ``""`` for a socket of this machine.

    None for a cluster or a Sentinel: they say themselves where the data are.
    """
    url = Address(url)
    if "+" in url.reveal().partition("://")[0]:
        return None
    with open_client(url) as client:  # redis-py's own reading of the url; nothing is sent
        return _host_of_pool(client.connection_pool)


def _host_of_pool(pool: Any) -> str:
    known = pool.connection_kwargs
    return "" if "path" in known else str(known.get("host", "localhost"))


def _sentinel_client(url: str, options: dict[str, Any]) -> redis.Redis:
    from redis.sentinel import Sentinel

    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    service, _, db = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("no service, as in redis+sentinel://host:port/service")
    sentinels = []
    for host in hosts.split(","):
        name, _, port = host.partition(":")
        sentinels.append((name, int(port or 26379)))
    options |= {"db": int(db or 0), "ssl": parts.scheme.startswith("rediss")}
    if password:
        options |= {"username": unquote(username) or None, "password": unquote(password)}
    manager = Sentinel(sentinels, socket_connect_timeout=CONNECT_TIMEOUT)
    client: redis.Redis = manager.master_for(service, **options)
    return client


def url_of(client: Client) -> Address:
    """Return the URL under which another process reaches the server of `client`.

    Raises
    ------
    ValueError
        The client is made in a way that no URL says, such as by Sentinel.
    """
    url = _url_of(client)
    if url is None:
        raise ValueError("This client's address can't be told to workers; give TaskQueue a url.")
    return url


def _url_of(client: Client) -> Address | None:
    import redis

    if isinstance(client, redis.RedisCluster):
        node = client.get_default_node()
        known = client.get_connection_kwargs()
        scheme = "rediss+cluster" if known.get("ssl") else "redis+cluster"
        return Address(f"{scheme}://{_login(known)}{node.host}:{node.port}")
    pool = client.connection_pool
    known = pool.connection_kwargs
    if issubclass(pool.connection_class, redis.UnixDomainSocketConnection):
        address, scheme, query = quote(known["path"]), "unix", f"?db={known.get('db') or 0}"
    elif "host" in known:
        secure = issubclass(pool.connection_class, redis.SSLConnection)
        host = f"[{known['host']}]" if ":" in known["host"] else known["host"]
        address = f"{host}:{known.get('port', 6379)}/{known.get('db') or 0}"
        scheme, query = ("rediss", _tls_options(known)) if secure else ("redis", "")
    else:
        return None
    return Address(f"{scheme}://{_login(known)}{address}{query}")


def _tls_options(known: dict[str, Any]) -> str:
    """Return what a url says of certificates; nothing, if all is as usual."""
    requires = known.get("ssl_cert_reqs") or "required"
    options = {name: known.get(name) for name in _TLS_FILES}
    if (text := getattr(requires, "name", requires).lower().removeprefix("cert_")) != "required":
        options["ssl_cert_reqs"] = text
    if known.get("ssl_check_hostname") is False:
        options["ssl_check_hostname"] = "false"
    given = {name: value for name, value in options.items() if value}
    return f"?{urlencode(given)}" if given else ""


def _login(known: dict[str, Any]) -> str:
    if not known.get("password"):
        return ""
    return f"{quote(known.get('username') or '', safe='')}:{quote(known['password'], safe='')}@"
