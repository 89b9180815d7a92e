"""A URL becomes a connection; redis-py's errors become ours. The only importer of redis-py.

redis-py is imported when the first connection opens: it takes longer than all of nbstreamq.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote, unquote, urlsplit

from ..errors import ServerRefused, ServerUnreachable

if TYPE_CHECKING:
    import redis

    Client: TypeAlias = redis.Redis | redis.RedisCluster
else:
    Client = object  #: A redis-py client; the name is for annotations only.

__all__ = ["RECONNECT", "Client", "Command", "Wire", "hide_password", "open_client", "url_of"]

Command = tuple[Any, ...]

#: Seconds to wait for a reply, beyond the time a command may block. Longer tolerates a slower
#: server; shorter notices a cut network sooner.
REPLY_TIMEOUT = 10.0
#: Seconds between attempts to reach a lost server. Shorter asks it more often.
RECONNECT = 0.2
#: Seconds to wait for a connection.
CONNECT_TIMEOUT = 5.0
#: Answers of a server that will work again by itself: wait, as for a lost connection.
_TEMPORARY = ("LOADING", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "BUSY ")


def hide_password(url: str) -> str:
    """Return `url` fit for an error message or a repr."""
    url = re.sub(r"(://[^/@:]*):.*@", r"\1:***@", url)
    return re.sub(r"([?&]password=)[^&#]*", r"\1***", url)


def open_client(url: str) -> Client:
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

    scheme, _, rest = url.partition("://")
    scheme = scheme.replace("valkey", "redis")
    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_timeout": REPLY_TIMEOUT,
        "protocol": 2,
    }
    try:
        if scheme in ("redis+cluster", "rediss+cluster"):
            return redis.RedisCluster.from_url(f"{scheme.partition('+')[0]}://{rest}", **options)
        if scheme in ("redis+sentinel", "rediss+sentinel"):
            return _sentinel_client(f"{scheme}://{rest}", options)
        if scheme in ("redis", "rediss", "unix"):
            return redis.Redis.from_url(f"{scheme}://{rest}", **options)
    except (redis.RedisError, redis.RedisClusterException) as error:
        raise _translate(error, url) from error
    except ValueError:
        # Not chained: the text of the cause may hold a part of the password.
        raise ValueError(
            f"{hide_password(url)!r} is no server address: look at its port, service and options."
        ) from None
    raise ValueError(
        f"{hide_password(url)!r} is no server address. Known are redis://, rediss://, unix://,"
        " valkey://, valkeys://, redis+cluster:// and redis+sentinel://."
    )


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


def url_of(client: Client) -> str:
    """Return the URL under which another process reaches the server of `client`.

    Raises
    ------
    ValueError
        The client is made in a way that no URL says, such as by Sentinel.
    """
    import redis

    if isinstance(client, redis.RedisCluster):
        node = client.get_default_node()
        known = client.get_connection_kwargs()
        scheme = "rediss+cluster" if known.get("ssl") else "redis+cluster"
        return f"{scheme}://{_login(known)}{node.host}:{node.port}"
    pool = client.connection_pool
    known = pool.connection_kwargs
    if issubclass(pool.connection_class, redis.UnixDomainSocketConnection):
        address, scheme, query = quote(known["path"]), "unix", f"?db={known.get('db') or 0}"
    elif "host" in known:
        secure = issubclass(pool.connection_class, redis.SSLConnection)
        address = f"{known['host']}:{known.get('port', 6379)}/{known.get('db') or 0}"
        scheme, query = "rediss" if secure else "redis", ""
    else:
        raise ValueError("This client's address can't be told to workers; give TaskQueue a url.")
    return f"{scheme}://{_login(known)}{address}{query}"


def _login(known: dict[str, Any]) -> str:
    if not known.get("password"):
        return ""
    return f"{quote(known.get('username') or '', safe='')}:{quote(known['password'], safe='')}@"


class Wire:
    """One connection to the server that holds a queue's keys. Not for two threads at once.

    Parameters
    ----------
    client
        Whose settings the connection takes.
    slot_key
        Any key of the queue: on a cluster, tells the node.
    scripts
        Texts of the Lua scripts to load whenever the server does not know one.
    """

    def __init__(self, client: Client, slot_key: str, scripts: Sequence[str]) -> None:
        self._client: Any = client
        self._slot_key = slot_key
        self._scripts = scripts
        self._connection: Any = None
        self._pool: Any = None
        self._was_closed = False

    def call(self, *commands: Command, timeout: float = REPLY_TIMEOUT) -> list[Any]:
        """Send `commands` in one go and return their replies, as bytes, ints, lists and None.

        Parameters
        ----------
        timeout
            Seconds to wait for the replies. Must exceed the time a command may block.

        Raises
        ------
        ServerRefused
            The server answered one of the commands with an error; the others were carried out.
        ServerUnreachable
            The connection failed. Whether the commands were carried out is not known.
        """
        import redis

        try:
            replies = self._exchange(commands, timeout)
            if any(isinstance(r, redis.exceptions.NoScriptError) for r in replies):
                replies = self._load_and_repeat(commands, replies, timeout)
        except (redis.RedisError, redis.RedisClusterException, OSError) as error:
            self.close()
            raise _translate(error, self._address()) from error
        except BaseException:
            # An interrupt between sending and reading: the next reply would be the wrong one.
            self.close()
            raise
        for reply in replies:
            if isinstance(reply, Exception):
                raise self._refusal(reply)
        return replies

    def send(self, command: Command) -> None:
        """Send one command whose reply `receive` returns later."""
        import redis

        try:
            connection = self._open()
            connection.send_packed_command(_pack((command,)), False)
        except (redis.RedisError, redis.RedisClusterException, OSError) as error:
            self.close()
            raise _translate(error, self._address()) from error

    def ready(self) -> bool:
        """Return whether `receive` would return, or raise, at once."""
        import redis

        if self._connection is None:
            return True
        try:
            return bool(self._connection.can_read(0))
        except (redis.RedisError, OSError):
            # Closed by the server: `receive` finds no connection, and says so.
            self.close()
            return True

    def receive(self) -> Any:
        """Return the reply to the command that was sent; raises as `call` does."""
        import redis

        try:
            if self._connection is None:
                raise redis.ConnectionError("connection closed")
            return self._connection.read_response(disable_decoding=True, timeout=REPLY_TIMEOUT)
        except redis.ResponseError as error:
            raise self._refusal(error) from error
        except (redis.RedisError, OSError) as error:
            self.close()
            raise _translate(error, self._address()) from error

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._was_closed = True
            connection.disconnect()
            self._pool.release(connection)

    def _exchange(self, commands: Sequence[Command], timeout: float) -> list[Any]:
        connection = self._open()
        connection.send_packed_command(_pack(commands), False)
        return [self._read(connection, timeout) for _ in commands]

    def _load_and_repeat(
        self, commands: Sequence[Command], replies: list[Any], timeout: float
    ) -> list[Any]:
        """Repeat just what failed for want of its script: the others must not run twice."""
        import redis

        self._load_scripts()
        missed = [i for i, r in enumerate(replies) if isinstance(r, redis.exceptions.NoScriptError)]
        again = self._exchange([commands[i] for i in missed], timeout)
        for i, reply in zip(missed, again, strict=True):
            replies[i] = reply
        return replies

    def _load_scripts(self) -> None:
        self._exchange([("SCRIPT", "LOAD", text) for text in self._scripts], REPLY_TIMEOUT)

    @staticmethod
    def _read(connection: Any, timeout: float) -> Any:
        import redis

        try:
            if timeout == connection.socket_timeout:  # not to be set, and set back, each time
                return connection.read_response(disable_decoding=True)
            return connection.read_response(disable_decoding=True, timeout=timeout)
        except redis.ResponseError as error:
            return error

    def _open(self) -> Any:
        if self._connection is None:
            self._pool = self._find_pool()
            self._connection = self._pool.get_connection()
            if self._was_closed:
                # The server may have been restarted without its scripts. If that showed in the
                # reply to one, what blocks behind it would have to end first.
                self._load_scripts()
        return self._connection

    def _find_pool(self) -> Any:
        if hasattr(self._client, "get_node_from_key"):
            node = self._client.get_node_from_key(self._slot_key)
            return self._client.get_redis_connection(node).connection_pool
        return self._client.connection_pool

    def _refusal(self, reply: Exception) -> Exception:
        text = str(reply)
        if type(reply).__name__ in ("MovedError", "AskError"):
            # The slot has a new home: learn it, and let the caller try again.
            self._client.nodes_manager.initialize()
            self.close()
            return ServerUnreachable(f"The cluster moved the queue: {text}")
        error = _translate(reply, self._address())
        if isinstance(error, ServerUnreachable):
            self.close()
        return error

    def _address(self) -> str:
        try:
            return url_of(self._client)
        except ValueError:
            return f"Sentinel's {self._client.connection_pool.service_name}"


def _pack(commands: Sequence[Command]) -> list[bytes]:
    """Return commands as they are sent; redis-py's own way takes several times as long."""
    from hiredis import pack_command

    return [b"".join(map(pack_command, commands))]


def _translate(error: Exception, address: str) -> Exception:
    import redis

    text = str(error).rstrip(".")[:300]
    where = f" ({hide_password(address)})" if address else ""
    temporary = text.startswith(_TEMPORARY) or isinstance(
        error, redis.exceptions.ReadOnlyError | redis.exceptions.ClusterDownError
    )
    if isinstance(error, redis.ResponseError) and not temporary:
        return ServerRefused(f"The server{where} refused a command: {text}")
    if isinstance(error, redis.AuthenticationError | redis.exceptions.AuthorizationError):
        return ServerRefused(
            f"The server{where} let us not in: {text}. Check user and password in the url."
        )
    return ServerUnreachable(
        f"The server{where} can't be reached: {text or type(error).__name__}."
        " Is it running, and is the url right?"
    )
