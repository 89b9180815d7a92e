"""A URL becomes a connection; redis-py's errors become ours. The only importer of redis-py.

redis-py is imported when the first connection opens: it takes longer than all of nbstreamq.
"""

from __future__ import annotations

import re
import select
from collections.abc import Sequence
from socket import socket
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote, unquote, urlsplit

from hiredis import PushNotification, Reader, pack_command

from ..errors import ServerRefused, ServerUnreachable

if TYPE_CHECKING:
    import redis

    Client: TypeAlias = redis.Redis | redis.RedisCluster
else:
    Client = object  #: A redis-py client; the name is for annotations only.

__all__ = [
    "RECONNECT",
    "REPLY_TIMEOUT",
    "Client",
    "Command",
    "Wire",
    "hide_password",
    "open_client",
    "url_of",
]

Command = tuple[Any, ...]

#: Seconds to wait for a reply, beyond the time a command may block. Longer tolerates a slower
#: server; shorter notices a cut network sooner.
REPLY_TIMEOUT = 10.0
#: Seconds between attempts to reach a lost server. Shorter asks it more often.
RECONNECT = 0.2
#: Seconds to wait for a connection.
CONNECT_TIMEOUT = 5.0
#: Answers of a server that will work again by itself: wait, as for a lost connection.
#: Bytes read from the socket at a time, at most.
_READ_BYTES = 2**16
#: What the reader returns while a reply is not complete.
_INCOMPLETE = object()
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


class _ReplyError(Exception):
    """A reply that is an error."""

    @property
    def is_about_scripts(self) -> bool:
        return str(self).startswith("NOSCRIPT")


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
        self._socket: Any = None
        self._reader: Any = None
        self._timeout = 0.0
        self._buffer = bytearray(_READ_BYTES)
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
        try:
            replies = self._exchange(commands, timeout)
            errors = [r for r in replies if type(r) is _ReplyError]
            if errors and any(e.is_about_scripts for e in errors):
                replies = self._load_and_repeat(commands, replies, timeout)
                errors = [r for r in replies if type(r) is _ReplyError]
        except BaseException as error:
            self._give_up(error)
            raise
        if errors:
            raise self._refused(str(errors[0]))
        return replies

    def send(self, command: Command) -> None:
        """Send one command whose reply `receive` returns later."""
        try:
            self._send((command,), REPLY_TIMEOUT)
        except BaseException as error:
            self._give_up(error)
            raise

    def wait(self, seconds: float | None, *others: socket) -> bool:
        """Wait until `receive` would return, or raise, at once; return whether it would.

        Parameters
        ----------
        seconds
            For how long; None: for ever.
        others
            Sockets that end the wait when they can be read; what they hold is thrown away.
        """
        if self._connection is None or self._reader.has_data():
            return True
        if getattr(self._socket, "pending", int)():  # what TLS has decrypted already
            return True
        poll = select.poll()  # unlike select(), knows sockets beyond the 1024th open file
        for one in (self._socket, *others):
            poll.register(one, select.POLLIN)
        ready = {number for number, _ in poll.poll(None if seconds is None else seconds * 1000)}
        for other in others:
            if other.fileno() in ready:
                other.recv(4096)
                return False
        return bool(ready)

    def receive(self) -> Any:
        """Return the reply to the command that was sent; raises as `call` does."""
        try:
            if self._connection is None:
                raise ConnectionError("connection closed")
            reply = self._read()
        except BaseException as error:
            self._give_up(error)
            raise
        if type(reply) is _ReplyError:
            raise self._refused(str(reply))
        return reply

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._was_closed = True
            self._socket = self._reader = None
            connection.disconnect()
            self._pool.release(connection)

    def _give_up(self, error: BaseException) -> None:
        """Close, after an interrupt too: the next reply would be a wrong one; raise what we say."""
        import redis

        self.close()
        if isinstance(error, redis.RedisError | redis.RedisClusterException | OSError):
            raise _translate(error, self._address()) from error

    def _exchange(self, commands: Sequence[Command], timeout: float) -> list[Any]:
        self._send(commands, timeout)
        return [self._read() for _ in commands]

    def _send(self, commands: Sequence[Command], timeout: float) -> None:
        if self._connection is None:
            self._open()
        if timeout != self._timeout:
            self._socket.settimeout(timeout)
            self._timeout = timeout
        self._socket.sendall(b"".join(map(pack_command, commands)))

    def _read(self) -> Any:
        reader = self._reader
        while (reply := reader.gets()) is _INCOMPLETE or type(reply) is PushNotification:
            if reply is _INCOMPLETE:
                n = self._socket.recv_into(self._buffer)
                if not n:
                    raise ConnectionError("it closed the connection")
                reader.feed(self._buffer, 0, n)
        return reply

    def _load_and_repeat(
        self, commands: Sequence[Command], replies: list[Any], timeout: float
    ) -> list[Any]:
        """Repeat just what failed for want of its script: the others must not run twice."""
        self._load_scripts()
        missed = [i for i, r in enumerate(replies) if type(r) is _ReplyError and r.is_about_scripts]
        again = self._exchange([commands[i] for i in missed], timeout)
        for i, reply in zip(missed, again, strict=True):
            replies[i] = reply
        return replies

    def _load_scripts(self) -> None:
        self._exchange([("SCRIPT", "LOAD", text) for text in self._scripts], REPLY_TIMEOUT)

    def _open(self) -> None:
        """Let redis-py connect and log in; from then on its socket is read and written here.

        Its own reading and writing takes several times as long.
        """
        self._pool = self._find_pool()
        self._connection = self._pool.get_connection()
        self._socket = self._connection._sock  # noqa: SLF001 - it has no other name for it
        self._reader = Reader(replyError=_ReplyError, notEnoughData=_INCOMPLETE)
        self._timeout = 0.0
        if self._was_closed:
            # The server may have been restarted without its scripts. If that showed in the
            # reply to one, what blocks behind it would have to end first.
            self._load_scripts()

    def _find_pool(self) -> Any:
        if hasattr(self._client, "get_node_from_key"):
            node = self._client.get_node_from_key(self._slot_key)
            return self._client.get_redis_connection(node).connection_pool
        return self._client.connection_pool

    def _refused(self, text: str) -> Exception:
        if text.startswith(("MOVED ", "ASK ")):
            # The slot has a new home: learn it, and let the caller try again.
            self._client.nodes_manager.initialize()
            self.close()
            return ServerUnreachable(f"The cluster moved the queue: {text}")
        error = _translate(_ReplyError(text), self._address())
        if isinstance(error, ServerUnreachable):
            self.close()
        return error

    def _address(self) -> str:
        try:
            return url_of(self._client)
        except ValueError:
            return f"Sentinel's {self._client.connection_pool.service_name}"


def _translate(error: Exception, address: str) -> Exception:
    import redis

    text = str(error).rstrip(".")[:300]
    where = f" ({hide_password(address)})" if address else ""
    login = redis.AuthenticationError | redis.exceptions.AuthorizationError
    if isinstance(error, login) or text.startswith(("NOAUTH", "WRONGPASS")):
        return ServerRefused(
            f"The server{where} let us not in: {text}. Check user and password in the url."
        )
    is_refusal = isinstance(error, _ReplyError | redis.ResponseError)
    if is_refusal and not text.startswith(_TEMPORARY):
        return ServerRefused(f"The server{where} refused a command: {text}")
    return ServerUnreachable(
        f"The server{where} can't be reached: {text or type(error).__name__}."
        " Is it running, and is the url right?"
    )
