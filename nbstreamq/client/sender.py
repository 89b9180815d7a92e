"""`Sender`: the connection of a session that carries calls to the server."""

from __future__ import annotations

import logging
import operator
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence, Sized
from typing import Any

import msgspec

from ..errors import NbstreamqError, ServerUnreachable
from ..locks import Condition
from ..wire.connection import RECONNECT, MessageTooLarge
from ..wire.keys import DAY
from ..wire.store import Store
from .calls import Call, Calls, Submission, gather
from .table import JobTable
from .waiting import uninterrupted

logger = logging.getLogger(__name__)

#: Seconds for which the server must know a batch; far less than it keeps the number.
REMEMBERED = DAY / 2
#: Bytes that may wait to be sent; then `submit` waits. More hides a longer outage.
MAX_WAITING_BYTES = 64 * 2**20
#: Most tasks, and bytes, in one message to the server: it does nothing else meanwhile.
MAX_BATCH, MAX_BATCH_BYTES = 400, 2**20
#: Seconds after which a thread that waits for room notices Ctrl-C.
FULL_WAIT = 0.1
#: How often a parcel is tried that our own code fails with; then its calls fail. More outlive rarer
#: faults; fewer tell sooner.
MOST_TRIES = 3
#: Bytes below which the submitting thread sends by itself.
MAX_IMMEDIATE_BYTES = 2**16


class Command(msgspec.Struct, frozen=True):
    """Something else to be done at the server, in its turn."""

    carry_out: Callable[[Store], object]
    fail: Callable[[BaseException], None]
    size_bytes: int = 0

    def has_ended(self) -> bool:
        """Return whether it need not be sent again: never."""
        return False


_message = operator.attrgetter("message")


class Sender:
    """Sends submissions and commands in the order in which they came.

    While nothing else is being sent, a call is sent by the thread that submits it: that saves the
    time of waking another. What comes in quick succession is batched by the sender's own thread.

    A server without data, or with an old snapshot, does not know the number of the last batch that
    it took. So lost data are noticed with the next batch, and after each lost connection.

    Parameters
    ----------
    store
        A connection of its own.
    session
        Id of the session.
    outstanding
        The calls and jobs that are open.
    on_trouble
        Called with the error when the server can't be reached, and with None before it is told
        anything again; raises `ServerUnreachable` if it is still away.
    on_forgotten
        Called with a number of calls when the server took these, and had forgotten all before.
    on_refused
        Called with calls that can't be sent: what they are of, why, and which items.

    Attributes
    ----------
    meanwhile
        Asks for results, if nobody has; called while calls are on their way.
    """

    meanwhile: Callable[[], object]

    def __init__(
        self,
        store: Store,
        session: str,
        *,
        outstanding: Sized,
        on_trouble: Callable[[ServerUnreachable | None], None],
        on_forgotten: Callable[[int], None],
        on_refused: Callable[[Calls | JobTable, BaseException, range], None],
    ) -> None:
        self._store = store
        self._outstanding = outstanding
        self._on_forgotten, self._on_refused = on_forgotten, on_refused
        self._session = session
        #: Number of the last batch that the server took, and when.
        self._taken, self._checking = (0, 0.0), threading.Lock()
        self._on_trouble = on_trouble
        self._queue: deque[Call | Submission | Command] = deque()
        self._waiting_bytes = 0
        self._changed = Condition()
        #: Held by the thread that sends. Only that thread takes from the queue, so order is kept.
        self._sending = threading.Lock()
        #: What is being sent: one command, or some submissions; its number; whether it was sent.
        self._batch: Sequence[Submission | Command] = ()
        self._number, self._is_retry = 0, False
        #: How many of the next submissions go one by one.
        self._n_single = 0
        self._lost = self._idle = self._full = False
        self._is_closing = self._giving_up = False
        self._thread = threading.Thread(
            target=self._run, name=f"nbstreamq-sender-{store.keys.queue}", daemon=True
        )
        self._thread.start()

    def send(
        self,
        item: Call | Submission | Command,
        shield: uninterrupted | None = None,
        *,
        immediate: bool = True,
    ) -> None:
        """Send `item` soon; blocks while too much waits to be sent.

        A small one is sent now, in this thread, if it is about the only call or job that is open,
        and nothing else is being sent.

        Parameters
        ----------
        shield
            Already around the call: Ctrl-C could leave a lock held, or half an item.
        immediate
            False: leave it to our thread anyway; more items come.
        """
        if shield is None:
            with uninterrupted() as own:
                self.send(item, own, immediate=immediate)
            return
        if isinstance(item, Call):
            immediate, n_bytes = len(item.group.open) == 1, len(item.args)
        else:
            n_bytes = item.size_bytes
        immediate = immediate and n_bytes < MAX_IMMEDIATE_BYTES and len(self._outstanding) <= 1
        if immediate and self._sending.acquire(blocking=False):
            try:
                if not (self._queue or self._batch or self._is_closing):
                    self._send_now(item)
                    return
            finally:
                self._sending.release()
        while not self._enqueue(item):
            shield.lower(True)
            shield.lower(False)

    def send_soon(self, command: Command) -> None:
        """Add a small command, and never wait: the garbage collector calls this, in any thread."""
        with self._changed:  # reentrant, and a thread that holds it has locked nothing else
            self._queue.append(command)
            if self._idle:
                self._changed.notify_all()

    def _enqueue(self, item: Call | Submission | Command) -> bool:
        """Add `item` to the queue; False if there is no room for it yet."""
        with self._changed:
            if self._waiting_bytes > MAX_WAITING_BYTES and not self._is_closing:
                self._full = True
                self._changed.wait(FULL_WAIT)
                return False
            self._waiting_bytes += item.size_bytes
            self._queue.append(item)
            if self._idle:
                self._changed.notify_all()
            return True

    def _send_now(self, item: Call | Submission | Command) -> None:
        """Send one item; if that fails, our thread goes on trying."""
        if isinstance(item, Call):
            item = item.group.submission([item], self._store.encode_task)
        self._number += 1
        self._is_retry = False
        self._batch = (item,)
        try:
            self._send_batch()
        except ServerUnreachable:
            self._lost = True
        except Exception:
            self._store.close()  # a reply may be left in it
            logger.exception("a message could not be sent; it is tried again")
        finally:
            if self._batch:  # after a second Ctrl-C, too
                with self._changed:
                    self._changed.notify_all()

    def has_lost_data(self, ask: Callable[..., Any]) -> bool:
        """Return, once, whether the server has forgotten the queue, or what it took for it.

        Parameters
        ----------
        ask
            Returns the server's answer to a question.
        """
        with self._checking:
            batch, at = self._taken
            if time.time() > at + REMEMBERED:
                batch = 0
            if ask(Store.remembers, self._session, batch):
                return False
            self._taken = (0, 0.0)
            ask(Store.check_secret)
        return True

    @property
    def is_busy(self) -> bool:
        """Whether something waits to be sent, or is being sent."""
        return bool(self._queue or self._batch)

    def close(self, timeout: float | None) -> None:
        """End; what is queued is sent first, if that takes no longer than `timeout` seconds."""
        with self._changed:
            self._is_closing = True
            self._giving_up = timeout is not None
            self._changed.notify_all()
        self._thread.join(timeout)

    def _run(self) -> None:
        is_open = True
        while is_open:
            try:
                is_open = self._wait_for_work()
                if is_open:
                    with self._sending:
                        self._send_next()
            except BaseException:  # no fault of ours, nor of a callback, may end the thread
                logger.exception("the sender goes on after a fault")
                time.sleep(RECONNECT)
        self._store.close()

    def _wait_for_work(self) -> bool:
        """Return true when there is something to send, false at the end."""
        with self._changed:
            while not self._queue and not self._batch and not self._is_closing:
                self._idle = True
                self._changed.wait()
                self._idle = False
            return bool(self._queue or self._batch)

    def _send_next(self) -> None:
        """Send the next batch, again and again until the server has answered."""
        if not self._batch:
            self._take_batch()
        n_tries = 0
        while self._batch:
            try:
                if self._lost:
                    # First of all: what it has lost shows in the number of the last batch.
                    self._on_trouble(None)
                    self._lost = False
                if self._is_retry:
                    self._batch = [item for item in self._batch if not item.has_ended()]
                if self._batch:
                    self._send_batch()
            except ServerUnreachable as error:
                self._lost = True
                self._report(error)
                if self._giving_up:
                    self._batch = ()
                time.sleep(RECONNECT)
            except BaseException as error:
                # Whether the server has it is not known: it takes the same number once.
                self._store.close()
                n_tries += 1
                logger.exception("a message could not be sent")
                if n_tries == MOST_TRIES:
                    self._fail_batch(error)
                    self._batch = ()

    def _report(self, error: ServerUnreachable) -> None:
        try:
            self._on_trouble(error)
        except Exception:
            logger.exception("reporting that the server is lost has failed, too")

    def _take_batch(self) -> None:
        """Make the next command, or the next submissions, the batch."""
        refused: list[tuple[Call, BaseException]] = []
        with self._changed:
            # However often it is sent, the server takes a number once.
            self._number += 1
            self._is_retry = False
            self._fill_batch(refused)
            if self._full:  # not otherwise: waking a thread costs more than the rest
                self._full = False
                self._changed.notify_all()
        for call, error in refused:
            self._on_refused(call.group, error, range(call.index, call.index + 1))

    def _fill_batch(self, refused: list[tuple[Call, BaseException]]) -> None:
        queue, batch, n_bytes = self._queue, list[Submission | Command](), 0
        self._batch = batch  # first: what is taken is in one of the two at any moment
        most = 1 if self._n_single else MAX_BATCH
        self._n_single = max(0, self._n_single - 1)
        while queue and len(batch) < most and n_bytes < MAX_BATCH_BYTES:
            item, n = queue[0], 1
            if isinstance(item, Command):
                if not batch:
                    batch.append(item)
                    n_bytes = item.size_bytes
                    queue.popleft()
                break
            if isinstance(item, Call):
                call = item
                try:
                    calls = gather(queue)
                    item, n = item.group.submission(calls, self._store.encode_task), len(calls)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is about this one
                    refused.append((call, error))
                    self._waiting_bytes -= queue.popleft().size_bytes
                    continue
            batch.append(item)
            n_bytes += item.size_bytes
            for _ in range(n):
                queue.popleft()
        self._waiting_bytes -= n_bytes

    def _send_batch(self) -> None:
        batch: Sequence[Any] = self._batch
        try:
            if type(batch[0]) is Command:
                batch[0].carry_out(self._store)
                self.meanwhile()
            else:
                is_retry, self._is_retry = self._is_retry, True
                previous = self._store.submit(
                    self._session,
                    self._number,
                    list(map(_message, batch)),
                    again=is_retry,
                    meanwhile=self.meanwhile,
                )
                last, at = self._taken
                # By the wall clock: the monotonic one stops while a machine sleeps.
                self._taken = self._number, time.time()
                if previous < last and self._taken[1] <= at + REMEMBERED:
                    self._on_forgotten(sum(len(submission.items) for submission in batch))
        except ServerUnreachable:
            raise
        except MessageTooLarge as error:
            if len(batch) > 1:
                self._split()
            else:
                self._fail_batch(error)
        except NbstreamqError as error:
            self._fail_batch(error)
        self._batch = ()

    def _fail_batch(self, error: BaseException) -> None:
        for item in self._batch:
            try:
                if isinstance(item, Command):
                    item.fail(error)
                else:
                    self._on_refused(item.owner, error, item.items)
            except Exception:
                logger.exception("a call that could not be sent could not be failed, either")

    def _split(self) -> None:
        """Put the batch back, to be sent one by one: the server has not even read it."""
        with self._changed:
            self._n_single = len(self._batch)
            self._waiting_bytes += sum(item.size_bytes for item in self._batch)
            self._queue.extendleft(reversed(self._batch))
