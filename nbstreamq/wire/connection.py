"""One connection to the server: redis-py opens it, and from then on it is read and written here."""

from __future__ import annotations

import os
import re
import secrets
import select
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from hiredis import PushNotification, Reader, pack_command

from ..arguments import MAX_SECONDS, check_text, shown
from ..errors import ServerRefused, ServerUnreachable
from ..secret import Address, Secret, hide_password, without_frames
from ..settings import n_cores
from .replies import printable

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


if TYPE_CHECKING:
    import redis

    Client: TypeAlias = redis.Redis | redis.RedisCluster
else:
    Client = object  #: A redis-py client; the name is for annotations only.


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


Command = tuple[Any, ...]

#: Seconds between attempts to reach a lost server. Shorter asks it more often.
RECONNECT = 0.2
#: Seconds that a server has to say why it lets nobody in.
REFUSAL_TIMEOUT = 0.2
#: Seconds in which an answer that comes soon is looked for again and again, instead of sleeping: to
#: be woken takes a while. Longer costs processor time for nothing. With one core, the server would
#: have to wait for us.
SPIN = 0.0003 if n_cores() > 1 else 0.0
#: Bytes from which a message may be one that the server refuses to carry: its limits are 1 MB or
#: more. And how often in a row it must have closed the connection for that, each time a fresh one;
#: more outlive a worse network, fewer tell sooner.
LARGE_BYTES, MOST_CUTS = 2**19, 4
#: Seconds in which it closes a connection because of what it is to answer.
CUT_SOON = 1.0
#: Bytes read from the socket at a time, at most.
_READ_BYTES = 2**16
#: What the reader returns while a reply is not complete.
_INCOMPLETE = object()


class MessageTooLarge(ServerRefused):
    """The server closes the connection as often as it is sent this, or asked for it."""


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
        self._socket: Any = None
        self._reader: Any = None
        self._timeout = 0.0
        self._buffer = bytearray(_READ_BYTES)
        self._was_closed = False
        #: What was sent last: how much, when, and itself if its answer may be too large.
        self._n_sent, self._sent_at, self._sent, self._is_doubtful = 0, 0.0, b"", False
        #: How often in a row the server has closed the connection then; of large messages in one.
        self._cuts: dict[bytes, int] = {}
        self._server_life: int | None = None

    def call(
        self,
        *commands: Command,
        timeout: float = REPLY_TIMEOUT,
        soon: float = 0.0,
        meanwhile: Callable[[], object] | None = None,
        on_first: Callable[[], None] | None = None,
        may_be_large: bool = False,
    ) -> list[Any]:
        """Send `commands` in one go and return their replies, as bytes, ints, lists and None.

        Parameters
        ----------
        timeout
            Seconds to wait for the replies. Must exceed the time a command may block.
        soon
            Seconds for which the first, and then the others, are looked for without sleeping.
        meanwhile
            Called when they are sent.
        on_first
            Called when the first command was carried out, for others may block for long.
        may_be_large
            Whether the replies may be too large for the server's limits.

        Raises
        ------
        MessageTooLarge
            The server closes the connection each time.
        ServerRefused
            The server answered one of the commands with an error; the others were carried out.
        ServerUnreachable
            The connection failed. Whether the commands were carried out is not known.
        """
        try:
            self._is_doubtful = may_be_large
            replies = self._exchange(
                commands, timeout, soon=soon, meanwhile=meanwhile, on_first=on_first
            )
            if self._cuts:
                self._cuts.pop(self._key, None)
            errors = [r for r in replies if type(r) is ReplyError]
            if errors and any(e.is_about_scripts for e in errors):
                replies = self._load_and_repeat(commands, replies, timeout)
                errors = [r for r in replies if type(r) is ReplyError]
        except BaseException as error:
            self._give_up(error)
            raise
        if errors:
            raise self._refused(str(errors[0]))
        return replies

    def server_life(self) -> int:
        """Return a number of 64 bits that the server has had since it was started.

        Where it does not tell, of this connection alone.
        """
        if self._server_life is None:
            try:
                found = re.search(rb"run_id:([0-9a-f]{16})", self.call(("INFO", "server"))[0])
            except ServerRefused:
                found = None
            self._server_life = int(found[1], 16) if found else secrets.randbits(64)
        return self._server_life

    def send(self, command: Command) -> None:
        """Send one command whose reply `receive` returns later."""
        try:
            self._is_doubtful = True
            self._send((command,), REPLY_TIMEOUT)
        except BaseException as error:
            self._give_up(error)
            raise

    def wait(self, seconds: float | None, *others: socket, soon: bool = False) -> bool:
        """Wait until `receive` would return, or raise, at once; return whether it would.

        Parameters
        ----------
        seconds
            For how long; None: for ever.
        others
            Sockets that end the wait when they can be read; what they hold is thrown away.
        soon
            Whether it is worth looking without sleeping.
        """
        if self._connection is None or self._has_data():
            return True
        poll = select.poll()  # unlike select(), knows sockets beyond the 1024th open file
        for one in (self._socket, *others):
            poll.register(one, select.POLLIN)
        found = _spin(poll, SPIN) if soon else []
        found = found or poll.poll(None if seconds is None else seconds * 1000)
        ready = {number for number, _ in found}
        for other in others:
            if other.fileno() in ready:
                other.recv(4096)
                return False
        return bool(ready)

    def sockets(self) -> list[socket]:
        """Return what can be read when a reply has come; nothing while not connected."""
        return [] if self._connection is None else [self._socket]

    def receive(self) -> Any:
        """Return the reply to the command that was sent; raises as `call` does."""
        try:
            if self._connection is None:
                raise ConnectionError("connection closed")
            reply = self._read()
        except BaseException as error:
            self._give_up(error)
            raise
        if self._cuts:
            self._cuts.pop(self._key, None)
        if type(reply) is ReplyError:
            raise self._refused(str(reply))
        return reply

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        connection, self._connection = self._connection, None
        self._server_life = None
        if connection is not None:
            self._was_closed = True
            self._socket = self._reader = None
            connection.disconnect()

    def _give_up(self, error: BaseException) -> None:
        """Close, after an interrupt too: the next reply would be a wrong one; raise what we say."""
        import redis

        is_cut = isinstance(error, OSError) and not isinstance(error, TimeoutError)
        words = self._last_words() if is_cut and self._connection is not None else None
        self.close()
        if words is not None:
            self._check_size(words)
        if isinstance(error, redis.RedisError | redis.RedisClusterException | OSError):
            raise translate(error, self._address()) from without_frames(error)

    def _last_words(self) -> str:
        """Return what the server said before it closed the connection; empty if nothing."""
        try:
            self._socket.settimeout(0.1)
            self._reader.feed(self._socket.recv(_READ_BYTES))
            said = self._reader.gets()
        except Exception:  # noqa: BLE001 - it is closed, and what is left in it may be a half reply
            return ""
        return str(said) if type(said) is ReplyError else ""

    def _check_size(self, words: str) -> None:
        """Raise `MessageTooLarge` if the server has closed the connection because of the message.

        A network that is cut does the same, but not each time.
        """
        is_large = self._n_sent >= LARGE_BYTES
        if not is_large and not (self._is_doubtful and time.monotonic() < self._sent_at + CUT_SOON):
            return
        n = self._cuts[self._key] = self._cuts.get(self._key, 0) + 1
        if n < MOST_CUTS and "Protocol error" not in words:
            return
        self._cuts.clear()
        what = (
            f"it was sent a message of {self._n_sent:,} bytes" if is_large else "it was to answer"
        )
        raise MessageTooLarge(
            f"The server{self._where()} closed the connection {n} times as {what}."
            f" {words + '. ' if words else ''}Probably that is more than it carries: see its"
            " proto-max-bulk-len, client-query-buffer-limit and client-output-buffer-limit."
        )

    @property
    def _key(self) -> bytes:
        return b"large" if self._n_sent >= LARGE_BYTES else self._sent

    def _where(self) -> str:
        return f" ({hide_password(self._address())})"

    def _exchange(
        self,
        commands: Sequence[Command],
        timeout: float,
        *,
        soon: float = 0.0,
        meanwhile: Callable[[], object] | None = None,
        on_first: Callable[[], None] | None = None,
    ) -> list[Any]:
        self._send(commands, timeout)
        if meanwhile:
            meanwhile()
        self._look(soon)
        replies = [self._read() for _ in commands[:1]]
        if on_first and type(replies[0]) is not ReplyError:
            on_first()
        self._look(soon)
        replies += [self._read() for _ in commands[1:]]
        return replies

    def _has_data(self) -> bool:
        """Return whether something was received that was not read, or decrypted by TLS."""
        return self._reader.has_data() or getattr(self._socket, "pending", int)() > 0

    def _look(self, seconds: float) -> None:
        """Wait for a reply, for so long, without sleeping."""
        if seconds and not self._has_data():
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            _spin(poll, seconds)

    def _send(self, commands: Sequence[Command], timeout: float) -> None:
        if self._connection is None:
            self._open()
        if timeout != self._timeout:
            self._socket.settimeout(timeout)
            self._timeout = timeout
        data = b"".join(map(pack, commands))
        self._n_sent, self._sent_at = len(data), time.monotonic()
        self._sent = data if self._is_doubtful and len(data) < LARGE_BYTES else b""
        self._socket.sendall(data)

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
        missed = [i for i, r in enumerate(replies) if type(r) is ReplyError and r.is_about_scripts]
        again = self._exchange([commands[i] for i in missed], timeout)
        for i, reply in zip(missed, again, strict=True):
            replies[i] = reply
        return replies

    def _load_scripts(self) -> None:
        self._exchange([("SCRIPT", "LOAD", text) for text in self._scripts], REPLY_TIMEOUT)

    def _open(self) -> None:
        """Let redis-py connect and log in; from then on its socket is read and written here.

        Its own reading and writing takes several times as long. The connection never was in a pool:
        after an interrupt, that could hand out one which is half open, and has not logged in.
        """
        pool = self._find_pool()
        connection = pool.connection_class(**pool.connection_kwargs)
        try:
            connection.connect()
        except BaseException as error:
            connection.disconnect()
            # Not where nobody answers: that would take as long once more.
            was_in = isinstance(error, Exception) and "connecting to" not in str(error)
            if was_in and (reason := _refusal(connection)):
                raise ConnectionError(f"the server said: {reason}") from error
            raise
        self._reader = Reader(replyError=ReplyError, notEnoughData=_INCOMPLETE)
        self._socket = connection._sock  # noqa: SLF001 - it has no other name for it
        self._connection = connection
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
        if "Protocol error" in text:  # of what hiredis writes only the length can be wrong
            self.close()
            return MessageTooLarge(
                f"The server{self._where()} refused a message of {self._n_sent:,} bytes: {text}."
                " See its proto-max-bulk-len."
            )
        error = translate(ReplyError(text), self._address())
        if isinstance(error, ServerUnreachable):
            self.close()
        return error

    def _address(self) -> str:
        try:
            return str(url_of(self._client))
        except ValueError:
            return f"Sentinel's {self._client.connection_pool.service_name}"


def pack(command: Command) -> bytes:
    """Return a command as it is sent.

    hiredis (3.5) crashes the process if the handler of a signal, Ctrl-C for instance, raises while
    it writes a number out: it gets none.
    """
    words: Any = tuple([str(w) if type(w) in (int, float) else w for w in command])
    try:
        packed: bytes = pack_command(words)
    except UnicodeEncodeError:  # half a surrogate pair, in what may be a name or a reason
        words = tuple(w.encode(errors="backslashreplace") if type(w) is str else w for w in words)
        packed = pack_command(words)
    return packed


def _spin(poll: select.poll, seconds: float) -> list[tuple[int, int]]:
    """Return what `poll` finds, looking for it without sleeping; empty if it takes longer."""
    until = time.monotonic() + seconds
    while not (found := poll.poll(0)) and time.monotonic() < until:
        os.sched_yield()  # who is to answer may need this core
    return found


def _refusal(connection: Any) -> str:
    """Return why the server lets nobody in; empty if it says nothing.

    A server that has too many clients says so and closes the connection. redis-py writes first, and
    then knows only that this failed.
    """
    try:
        with connection._connect() as door:  # noqa: SLF001 - it has no other name for it
            door.settimeout(REFUSAL_TIMEOUT)
            text = door.recv(200)
    except Exception:  # noqa: BLE001 - the caller has an error to raise
        return ""
    return text[1:].partition(b"\r")[0].decode(errors="replace") if text[:1] == b"-" else ""
