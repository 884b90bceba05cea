"""What may end a request early: the client leaving, a clock running out, the server stopping."""

import asyncio
import enum
import functools
from collections.abc import Iterator
from types import TracebackType

from starlette.types import Receive

from inference_proxy.faults import Faults
from inference_proxy.http.server_protocol import ClientConnection
from inference_proxy.keys.authenticate import Key
from inference_proxy.request.clocks import Clocks

GRAIN_S = 0.1
"""The most, in seconds, by which a clock may end its request too late."""

# Usually sooner than any clock runs out, and later than a request ends: so most requests are checked once or
# never.
_FIRST_CHECK_S = 30.0


class Reason(enum.Enum):
    CLIENT_GONE = "client_gone"
    FIRST_BYTE = "first_byte_timeout"
    BETWEEN_CHUNKS = "between_chunks_timeout"
    TOTAL = "total_timeout"
    ENGINE_HUNG = "engine_hung"
    KEY_REVOKED = "key_revoked"
    SHUTDOWN = "shutdown"


# Used by each request; before Python 3.12, looking up an enum's member costs as much as a function call.
_CLIENT_GONE = Reason.CLIENT_GONE


class Interrupted(Exception):
    """The guarded block was ended from outside; `reason` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class Guards:
    """The guards of a worker's running requests, with one timer for all their clocks.

    One event loop timer per guard would cost more than the rest of the guard. This is a timing wheel
    (Varghese and Lauck 1987), which finds expired entries without looking at the others.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._all: set[Guard] = set()
        self._slots: dict[int, set[Guard]] = {}  # by slot number; a slot is GRAIN_S long
        self._turned = 0  # the last slot that was processed
        self._turning = False

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator["Guard"]:
        """A copy, because guards may leave during the iteration."""
        return iter(list(self._all))

    def enter(self, guard: "Guard") -> None:
        self._all.add(guard)

    def leave(self, guard: "Guard", slot: int) -> None:
        self._all.discard(guard)
        self.cancel(guard, slot)

    def call_at(self, when: float, guard: "Guard", loop: asyncio.AbstractEventLoop) -> int:
        """Have the guard check its clocks at that loop time. Returns the slot for cancel()."""
        if not self._turning:
            self._turning, self._turned = True, int(loop.time() / GRAIN_S)
            self._turn_at(self._turned + 1, loop)
        slot = max(int(when / GRAIN_S), self._turned) + 1
        due = self._slots.get(slot)
        if due is None:
            due = self._slots[slot] = set()
        due.add(guard)
        return slot

    def cancel(self, guard: "Guard", slot: int) -> None:
        due = self._slots.get(slot)
        if due is not None:
            due.discard(guard)
            if not due:
                del self._slots[slot]

    def _turn_at(self, slot: int, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_at(slot * GRAIN_S, self._turn, slot, loop)

    def _turn(self, slot: int, loop: asyncio.AbstractEventLoop) -> None:
        # Floats are rounded, so the time alone could give the slot before.
        slot = max(slot, int(loop.time() / GRAIN_S))
        while self._turned < slot:
            self._turned += 1
            for guard in self._slots.pop(self._turned, ()):
                try:
                    guard.check_clocks()
                except Exception:
                    self._faults.note_wrong_counts()
        self._turning = bool(self._slots)
        if self._turning:
            self._turn_at(slot + 1, loop)


class Guard:
    """Cancels the task inside `with guard:` for a Reason; the block then ends with Interrupted.

    The request has `limit_s` seconds in all from its beginning; start() sets the clocks that run while an
    engine works on it. Timers are not reset: the clocks are checked early instead, so that a chunk costs only
    an assignment to `reading_since`. While a chunk is being sent to a client that does not read,
    `reading_since` is None: only the total clock runs then, because the engine is not to blame. now() is the
    clock that `reading_since` uses.
    """

    __slots__ = (
        "_between_s",
        "_connection",
        "_first_byte_at",
        "_guards",
        "_loop",
        "_slot",
        "_task",
        "_total_at",
        "_watcher",
        "key",
        "now",
        "reading_since",
        "reason",
    )

    def __init__(self, guards: Guards, limit_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._guards = guards
        self._loop = loop
        self.now = loop.time
        self._total_at = loop.time() + limit_s
        self._first_byte_at: float | None = None
        self._between_s = limit_s
        self.reason: Reason | None = None
        self._task: asyncio.Task[object] | None = None
        self._slot = 0
        self._connection: ClientConnection | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.reading_since: float | None = None
        self.key: Key | None = None

    def __enter__(self) -> "Guard":
        self._task = asyncio.current_task()
        self._guards.enter(self)
        self._check_at(min(self.now() + _FIRST_CHECK_S, self._total_at))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guards.leave(self, self._slot)
        if self._connection is not None:
            self._connection.unwatch()
        if self._watcher is not None:
            self._watcher.cancel()
        task, self._task = self._task, None
        if self.reason is not None and task is not None:
            others = task.uncancel()
            # Someone else has cancelled the task as well: do not swallow that.
            if kind is asyncio.CancelledError and not others:
                raise Interrupted(self.reason) from None

    def watch(self, receive: Receive, connection: ClientConnection | None) -> None:
        """End the request when its client leaves.

        Call this once the body has been read: after it, `receive` reports nothing else.

        Without this a lost client goes unnoticed: the server silently drops what is sent to a closed
        connection. `connection` reports the same without a task that waits for it.
        """
        if connection is not None:
            self._connection = connection
            return connection.watch(functools.partial(self.interrupt, _CLIENT_GONE))
        self._watcher = self._loop.create_task(self._until_gone(receive))

    def start(self, clocks: Clocks) -> None:
        """An engine has been asked.

        After a retry, the clock for the first byte starts again, but the total does not grow.
        """
        now = self.now()
        self._first_byte_at = now + clocks.first_byte_s
        self._between_s = clocks.between_chunks_s
        self._total_at = min(self._total_at, now + clocks.total_s)
        self._check_at(min(self._first_byte_at, self._total_at))

    def first_byte_came(self) -> None:
        """Stop the clock for the first byte and start the one between chunks."""
        self._first_byte_at = None
        self._check_at(min(self.now() + self._between_s, self._total_at))

    def interrupt(self, reason: Reason) -> None:
        """End the block.

        The first reason stands, except that any other replaces ENGINE_HUNG, which outlive() may undo.
        """
        if self._task is None or self.reason not in (None, Reason.ENGINE_HUNG):
            return
        if self.reason is None:
            self._task.cancel()
        self.reason = reason

    def outlive(self) -> bool:
        """Whether the block may continue although it was cancelled.

        Called inside the block. It may if the only reason was ENGINE_HUNG.
        """
        if self.reason is not Reason.ENGINE_HUNG or self._task is None:
            return False
        self.reason = None
        return not self._task.uncancel()

    def silent_s(self) -> float | None:
        """For how long the engine has sent nothing.

        None before its first byte, or while the client does not read.
        """
        return None if self.reading_since is None else self.now() - self.reading_since

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.interrupt(_CLIENT_GONE)

    def check_clocks(self) -> None:
        """End the block if a clock has run out; otherwise check again when the next one may have."""
        self._slot = 0
        now = self.now()
        if now >= self._total_at:
            return self.interrupt(Reason.TOTAL)
        if self._first_byte_at is not None:
            due, reason = self._first_byte_at, Reason.FIRST_BYTE
        else:
            due, reason = (self.reading_since or now) + self._between_s, Reason.BETWEEN_CHUNKS
        if now >= due:
            return self.interrupt(reason)
        self._check_at(min(due, self._total_at))

    def _check_at(self, when: float) -> None:
        """Check the clocks at that time or earlier."""
        if self._slot:
            if when >= self._slot * GRAIN_S:
                return
            self._guards.cancel(self, self._slot)
        self._slot = self._guards.call_at(when, self, self._loop)
