"""A URL becomes a client of redis-py, and its errors become ours.

redis-py is imported when the first client is made: it takes longer than all of nbstreamq.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote, unquote, urlencode, urlsplit

from ..arguments import shown
from ..errors import ServerRefused, ServerUnreachable
from ..secret import Address, Secret, hide_password, without_frames
from .unsigned import printable

if TYPE_CHECKING:
    import redis

    Client: TypeAlias = redis.Redis | redis.RedisCluster
else:
    Client = object  #: A redis-py client; the name is for annotations only.

__all__ = [
    "REPLY_TIMEOUT",
    "Client",
    "ReplyError",
    "check_client",
    "hide_password",
    "host_of",
    "open_client",
    "same_server",
    "translate",
    "url_of",
]

#: Seconds to wait for a reply, beyond the time a command may block. Longer tolerates a slower
#: server; shorter notices a cut network sooner.
REPLY_TIMEOUT = 10.0
#: Seconds to wait for a connection.
CONNECT_TIMEOUT = 5.0
#: redis-py's names of the files, and their password, that a connection with TLS may need.
_TLS_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password")
#: Answers of a server that will work again by itself: wait, as for a lost connection.
_TEMPORARY = ("LOADING", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "BUSY ")


def check_client(parameter: str, value: Any) -> None:
    """Raise TypeError unless `value` is a client of redis-py that is not asynchronous."""
    import redis

    if not isinstance(value, redis.Redis | redis.RedisCluster):
        raise TypeError(
            f"{parameter} is {shown(value)}: it must be a redis.Redis or a redis.RedisCluster"
        )


def same_server(url: Address | str, other: Address | str) -> bool:
    """Return whether both lead to the same database, whoever logs in there."""
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


class ReplyError(Exception):
    """A reply that is an error."""

    @property
    def is_about_scripts(self) -> bool:
        return str(self).startswith("NOSCRIPT")


def translate(error: Exception, address: str) -> Exception:
    import redis

    text = printable(str(error).rstrip(".")[:300])  # whoever controls the server wrote that
    where = f" ({hide_password(address)})" if address else ""
    login = redis.AuthenticationError | redis.exceptions.AuthorizationError
    if isinstance(error, login) or text.startswith(("NOAUTH", "WRONGPASS")):
        return ServerRefused(
            f"The server{where} let us not in: {text}. Check user and password in the url."
        )
    is_refusal = isinstance(error, ReplyError | redis.ResponseError)
    if is_refusal and not text.startswith(_TEMPORARY):
        return ServerRefused(f"The server{where} refused a command: {text}")
    return ServerUnreachable(
        f"The server{where} can't be reached: {text or type(error).__name__}."
        " Is it running, and is the url right?"
    )
