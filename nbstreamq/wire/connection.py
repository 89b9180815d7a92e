"""One connection to the server: redis-py opens it, and from then on it is read and written here."""

from __future__ import annotations

import os
import re
import secrets
import select
import struct
import time
from collections.abc import Callable, Sequence
from socket import SO_RCVTIMEO, SO_SNDTIMEO, SOL_SOCKET, socket
from typing import Any, ClassVar, TypeAlias

from hiredis import PushNotification, Reader, pack_command

from ..cores import n_cores
from ..errors import NbstreamqError, ServerRefused, ServerUnreachable
from ..secret import hide_password, without_frames
from .addresses import REPLY_TIMEOUT, Client, url_of
from .replies import ReplyError, translate

#: A command's words; or what `pack` made of them, where they are the same each time.
Command: TypeAlias = tuple[Any, ...] | bytes

#: Seconds between attempts to reach a lost server. Shorter asks it more often.
RECONNECT = 0.2
#: Seconds that a server has to say why it refuses a connection.
REFUSAL_TIMEOUT = 0.2
#: Seconds to poll for a reply before sleeping, because waking up takes a while. Longer
#: wastes processor time. With one core the server would have to wait for us.
SPIN = 0.0003 if n_cores() > 1 else 0.0
#: Seconds for which others may keep the processor when it is yielded to them. If they keep it for
#: longer, no connection of this process spins for `CALM` seconds: one that sleeps is woken at once
#: by its reply. Longer spins beside busy processes; shorter sleeps though nobody is busy.
CROWDED, CALM = 0.0002, 1.0
#: Bytes from which the server may refuse to carry a message: its limits are 1 MB or more.
LARGE_BYTES = 2**19
#: How often in a row the server must cut the connection, a fresh one each time, before we blame
#: the message. More tolerates a worse network, fewer reports sooner.
MOST_CUTS = 4
#: Seconds in which the server cuts the connection because its reply is too large.
CUT_SOON = 1.0
#: Bytes read from the socket at a time, at most.
_READ_BYTES = 2**16
#: What the reader returns while a reply is not complete.
_INCOMPLETE = object()


class MessageTooLarge(ServerRefused):
    """The server closes the connection each time it is sent this message, or asked for it."""


class Wire:
    """One connection to the server that holds a queue's keys. Not for two threads at once.

    Parameters
    ----------
    client
        Whose settings the connection takes.
    slot_key
        Any key of the queue: on a cluster, it determines the node.
    scripts
        Texts of the Lua scripts to load when the server does not know one.
    """

    _calm_until: ClassVar[float] = 0.0

    def __init__(self, client: Client, slot_key: str, scripts: Sequence[str]) -> None:
        self._client: Any = client
        self._slot_key = slot_key
        self._scripts = scripts
        self._connection: Any = None
        #: What becomes readable when a reply arrives; None while not connected.
        self.socket: Any = None
        self._reader: Any = None
        self._poll = select.poll()  # unlike select(), it knows sockets beyond the 1024th open file
        #: Returns how many bytes TLS has decrypted, which `poll` does not see; None without TLS.
        self._pending: Callable[[], int] | None = None
        self._timeout = 0.0
        self._buffer = bytearray(_READ_BYTES)
        self._was_closed = False
        #: What was sent last: its size, when, and its bytes if the reply may be too large.
        self._n_sent, self._sent_at, self._sent = 0, 0.0, b""
        #: How often in a row the server cut the connection after that; large messages share a key.
        self._cuts: dict[bytes, int] = {}
        #: What `server_life` found; 0 if it has not asked since the connection was opened.
        self.life = 0

    def call(
        self,
        *commands: Command,
        timeout: float = REPLY_TIMEOUT,
        spin: float = 0.0,
        meanwhile: Callable[[], object] | None = None,
        on_first: Callable[[Any], None] | None = None,
        may_be_large: bool = False,
        is_sent: bool = False,
    ) -> list[Any]:
        """Send `commands` in one go and return their replies, as bytes, ints, lists and None.

        Parameters
        ----------
        timeout
            Seconds to wait for the replies. Must exceed the time a command may block.
        spin
            Seconds to look for replies without sleeping.
        meanwhile
            Called after sending, before the replies are read.
        on_first
            Called with the first command's reply, unless that is an error; the others may block for
            long.
        may_be_large
            Whether the replies may exceed the server's limits.
        is_sent
            Whether `send` has sent them. It may have sent others since then.

        Raises
        ------
        MessageTooLarge
            The server closes the connection each time.
        ServerRefused
            The server answered one of the commands with an error; it carried out the others.
        ServerUnreachable
            The connection failed. It is unknown whether the commands were carried out.
        """
        if not is_sent:
            self.send(*commands, timeout=timeout, may_be_large=may_be_large)
        try:
            if is_sent and self._connection is None:
                raise ConnectionError("connection closed")
            if meanwhile is not None:
                meanwhile()
            replies = self._read(len(commands), spin, on_first)
            if self._cuts:
                self._cuts.pop(self._key, None)
            if ReplyError in map(type, replies):
                self._run_unknown_scripts(commands, replies, timeout, on_first, is_last=not is_sent)
        except BaseException as error:
            self._give_up(error)
            raise
        if ReplyError in map(type, replies):
            raise self._refused(next(str(r) for r in replies if type(r) is ReplyError))
        return replies

    def server_life(self) -> int:
        """Return a 64-bit number that changes when the server restarts.

        If the server does not report one, it changes with each connection.
        """
        if not self.life:
            try:
                found = re.search(rb"run_id:([0-9a-f]{16})", self.call(("INFO", "server"))[0])
            except ServerRefused:
                found = None
            self.life = int(found[1], 16) if found else secrets.randbits(64)
        return self.life

    def send(
        self, *commands: Command, timeout: float = REPLY_TIMEOUT, may_be_large: bool = False
    ) -> None:
        """Send commands whose replies `receive` or `call` returns later.

        Parameters are those of `call`.
        """
        try:
            if self._connection is None:
                self._open()
            if timeout != self._timeout:
                self._limit(timeout)
            data = pack(*commands)
            self._n_sent, self._sent_at = len(data), time.monotonic()
            self._sent = data if may_be_large and len(data) < LARGE_BYTES else b""
            self.socket.sendall(data)
        except BaseException as error:
            self._give_up(error)
            raise

    def spin(self, seconds: float = SPIN) -> bool:
        """Look for a reply without sleeping; return whether there is one."""
        now = time.monotonic()
        until = now + seconds if now > Wire._calm_until else 0.0
        while not (found := self._poll.poll(0)) and now < until:
            os.sched_yield()  # the server may need this core to answer
            before, now = now, time.monotonic()
            if now > before + CROWDED:
                Wire._calm_until = now + CALM
        return bool(found)

    def wait(self, seconds: float, *others: socket) -> bool:
        """Wait until `receive` would return or raise at once; return whether it would.

        Another thread than the one that reads may wait, too.

        Parameters
        ----------
        seconds
            How long to wait.
        others
            Sockets that end the wait when they can be read; their data are thrown away.
        """
        own, reader, pending = self.socket, self._reader, self._pending
        if own is None or reader is None or reader.has_data() or (pending and pending()):
            return True
        poll = select.poll()  # of this wait: two threads can't use the same one
        for one in (own, *others):
            poll.register(one, select.POLLIN)
        ready = dict(poll.poll(seconds * 1000))
        for other in others:
            if other.fileno() in ready:
                other.recv(4096)
                return False
        return bool(ready)

    def receive(self) -> Any:
        """Return the reply to the command that `send` sent; raises as `call` does."""
        try:
            if self._connection is None:
                raise ConnectionError("connection closed")
            reply = self._read(1)[0]
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
        self.life = 0
        if connection is not None:
            self._was_closed = True
            self.socket = self._reader = self._pending = None
            connection.disconnect()

    # -- sending and reading -------------------------------------------------------------------

    def _limit(self, seconds: float) -> None:
        """Let each send and read take at most so long."""
        self._timeout = seconds
        if self._pending is not None:
            self.socket.settimeout(seconds)
            return
        # Python's own timeout asks the kernel twice, before each send and read, and takes and
        # releases the interpreter's lock for that.
        self.socket.settimeout(None)
        for option in (SO_RCVTIMEO, SO_SNDTIMEO):
            limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
            self.socket.setsockopt(SOL_SOCKET, option, limit)

    def _read(
        self, n: int, spin: float = 0.0, on_first: Callable[[Any], None] | None = None
    ) -> list[Any]:
        """Return the next `n` replies; see `call`."""
        reader, buffer, replies = self._reader, self._buffer, list[Any]()
        while len(replies) < n:
            reply = reader.gets()
            if reply is _INCOMPLETE:
                if spin and not (self._pending and self._pending()):
                    self.spin(spin)
                n_bytes = self.socket.recv_into(buffer)
                if not n_bytes:
                    raise ConnectionError("it closed the connection")
                reader.feed(buffer, 0, n_bytes)
            elif type(reply) is not PushNotification:
                replies.append(reply)
                if on_first is not None and len(replies) == 1 and type(reply) is not ReplyError:
                    on_first(reply)
        return replies

    # -- errors --------------------------------------------------------------------------------

    def _run_unknown_scripts(
        self,
        commands: Sequence[Command],
        replies: list[Any],
        timeout: float,
        on_first: Callable[[Any], None] | None,
        *,
        is_last: bool,
    ) -> None:
        """Repeat only the commands whose script was unknown: the others must not run twice.

        Parameters
        ----------
        is_last
            Whether nothing was sent since then, whose replies would come first.
        """
        missed = [i for i, r in enumerate(replies) if type(r) is ReplyError and r.is_about_scripts]
        if missed and not is_last:
            raise ConnectionError("the server has forgotten a script")
        if missed:
            self._load_scripts()
            self.send(*(commands[i] for i in missed), timeout=timeout)
            again = self._read(len(missed), on_first=None if missed[0] else on_first)
            for i, reply in zip(missed, again, strict=True):
                replies[i] = reply

    def _load_scripts(self) -> None:
        load = [("SCRIPT", "LOAD", text) for text in self._scripts]
        self.send(*load)
        self._read(len(load))

    def _give_up(self, error: BaseException) -> None:
        """Close the connection, whose next reply would be a wrong one; raise our own error.

        The caller raises `error` itself if it is not about the connection.
        """
        import redis

        if isinstance(error, NbstreamqError):  # of a send in between, which has given up
            return
        if isinstance(error, BlockingIOError):
            error = TimeoutError("timed out")
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
            self._limit(0.1)
            self._reader.feed(self.socket.recv(_READ_BYTES))
            said = self._reader.gets()
        except Exception:  # noqa: BLE001 - it is closed, and what is left in it may be half a reply
            return ""
        return str(said) if type(said) is ReplyError else ""

    def _check_size(self, words: str) -> None:
        """Raise `MessageTooLarge` if the server has closed the connection because of the message.

        A bad network also cuts connections, but not each time.
        """
        is_large = self._n_sent >= LARGE_BYTES
        if not is_large and not (self._sent and time.monotonic() < self._sent_at + CUT_SOON):
            return
        n = self._cuts[self._key] = self._cuts.get(self._key, 0) + 1
        if n < MOST_CUTS and "Protocol error" not in words:
            return
        self._cuts.clear()
        what = (
            f"when it was sent a message of {self._n_sent:,} bytes"
            if is_large
            else "before it answered"
        )
        raise MessageTooLarge(
            f"The server{self._where()} closed the connection {n} times {what}."
            f" {words + '. ' if words else ''}Probably that is more than it carries: see its"
            " proto-max-bulk-len, client-query-buffer-limit and client-output-buffer-limit."
        )

    @property
    def _key(self) -> bytes:
        return b"large" if self._n_sent >= LARGE_BYTES else self._sent

    def _refused(self, text: str) -> Exception:
        if text.startswith(("MOVED ", "ASK ")):
            # The slot has moved to another node: learn which, and let the caller try again.
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

    def _where(self) -> str:
        return f" ({hide_password(self._address())})"

    def _address(self) -> str:
        try:
            return str(url_of(self._client))
        except ValueError:
            return f"Sentinel's {self._client.connection_pool.service_name}"

    # -- connecting ----------------------------------------------------------------------------

    def _open(self) -> None:
        """Connect and log in through redis-py; from then on its socket is read and written here.

        redis-py takes several times as long to read and write. The connection never was in a pool:
        after an interrupt, a pool could hand out a connection that is half open and not logged in.
        """
        pool = self._find_pool()
        connection = pool.connection_class(**pool.connection_kwargs)
        try:
            connection.connect()
        except BaseException as error:
            connection.disconnect()
            # Not if nobody answers: asking again would take as long.
            was_in = isinstance(error, Exception) and "connecting to" not in str(error)
            if was_in and (reason := _refusal(connection)):
                raise ConnectionError(f"the server said: {reason}") from error
            raise
        self._reader = Reader(replyError=ReplyError, notEnoughData=_INCOMPLETE)
        self.socket = connection._sock  # noqa: SLF001 - it has no other name for it
        self._pending = getattr(self.socket, "pending", None)
        self._poll = select.poll()
        self._poll.register(self.socket, select.POLLIN)
        self._connection = connection
        self._timeout = 0.0
        if self._was_closed:
            # The server may have restarted without its scripts. If only the reply to a script
            # showed that, a blocking command sent behind it would have to end first.
            self._load_scripts()

    def _find_pool(self) -> Any:
        if hasattr(self._client, "get_node_from_key"):
            node = self._client.get_node_from_key(self._slot_key)
            return self._client.get_redis_connection(node).connection_pool
        return self._client.connection_pool


def pack(*commands: Command) -> bytes:
    """Return `commands` as they are sent; those that are bytes are packed already.

    hiredis (3.5) crashes the process if a signal handler raises, as Ctrl-C does, while it writes a
    number. So it gets no numbers.
    """
    packed = []
    for command in commands:
        if type(command) is not bytes:
            words: list[Any] = [*command]
            for i, word in enumerate(words):
                if type(word) is int or type(word) is float:
                    words[i] = str(word)
            try:
                command = pack_command(tuple(words))  # noqa: PLW2901
            except UnicodeEncodeError:  # half a surrogate pair, in what may be a name or a reason
                command = pack_command(tuple(map(_escape, words)))  # noqa: PLW2901
        packed.append(command)
    return b"".join(packed)


def _escape(word: Any) -> Any:
    return word.encode(errors="backslashreplace") if isinstance(word, str) else word


def _refusal(connection: Any) -> str:
    """Return why the server refuses connections; empty if it says nothing.

    A server that has too many clients says so and closes the connection. redis-py writes first, and
    then knows only that writing failed.
    """
    try:
        with connection._connect() as opened:  # noqa: SLF001 - it has no other name for it
            opened.settimeout(REFUSAL_TIMEOUT)
            text = opened.recv(200)
    except Exception:  # noqa: BLE001 - the caller has an error to raise
        return ""
    return text[1:].partition(b"\r")[0].decode(errors="replace") if text[:1] == b"-" else ""
