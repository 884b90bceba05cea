"""What may end a request before its time: the client leaving, a clock running out, the server stopping."""

import asyncio
import enum
import functools
from types import TracebackType

from starlette.types import Receive

from .clocks import Clocks
from .server_protocol import Client

# Mostly sooner than any clock runs out, and later than a request ends: so most need a single timer.
_FIRST_LOOK_S = 30.0


class Reason(enum.Enum):
    CLIENT_GONE = "client_gone"
    FIRST_BYTE = "first_byte_timeout"
    BETWEEN_CHUNKS = "between_chunks_timeout"
    TOTAL = "total_timeout"
    ENGINE_HUNG = "engine_hung"
    SHUTDOWN = "shutdown"


class Interrupted(Exception):
    """The guarded block was ended from outside, and why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class Guard:
    """Cancels the task inside `with guard:` for a Reason; the block then ends with Interrupted.

    From its beginning the request has `limit_s` seconds in all; start() sets the clocks that run while an
    engine works for it. One timer serves all clocks. It fires too early rather than being set again, so that
    a chunk costs an assignment to `reading_since`, and most requests a single timer. While a chunk is on its
    way to a client that does not read, `reading_since` is None: only the total clock runs then, for the
    engine is not to blame. now() is the time by which `reading_since` counts.
    """

    __slots__ = (
        "_between_s",
        "_client",
        "_first_byte_at",
        "_loop",
        "_reason",
        "_task",
        "_timer",
        "_timer_at",
        "_total_at",
        "_watcher",
        "now",
        "reading_since",
    )

    def __init__(self, limit_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._total_at = self._loop.time() + limit_s
        self._first_byte_at: float | None = None
        self._between_s = limit_s
        self._reason: Reason | None = None
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._client: Client | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.reading_since: float | None = None

    def __enter__(self) -> "Guard":
        self._task = asyncio.current_task()
        self._arm(min(self._loop.time() + _FIRST_LOOK_S, self._total_at))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._client is not None:
            self._client.unwatch()
        if self._watcher is not None:
            self._watcher.cancel()
        task, self._task = self._task, None
        if self._reason is not None and task is not None:
            others = task.uncancel()
            # Cancelled by somebody else as well: that is not ours to swallow.
            if kind is asyncio.CancelledError and not others:
                raise Interrupted(self._reason) from None

    def watch(self, receive: Receive, client: Client | None) -> None:
        """From here on (the body has been read) all that `receive` can still tell is that the client left.

        Without it nobody notices: the server drops what is sent to a closed connection in silence. `client`
        tells the same without a task that waits for it.
        """
        if client is not None:
            self._client = client
            return client.watch(functools.partial(self.interrupt, Reason.CLIENT_GONE))
        self._watcher = self._loop.create_task(self._until_gone(receive))

    def start(self, clocks: Clocks) -> None:
        """An engine is asked now. A second one has time for its first byte anew, and no more in all."""
        now = self._loop.time()
        self._first_byte_at = now + clocks.first_byte_s
        self._between_s = clocks.between_chunks_s
        self._total_at = min(self._total_at, now + clocks.total_s)
        self._arm(min(self._first_byte_at, self._total_at))

    def first_byte_came(self) -> None:
        """Stops that clock and starts the one between chunks."""
        self._first_byte_at = None
        self._arm(min(self._loop.time() + self._between_s, self._total_at))

    def interrupt(self, reason: Reason) -> None:
        """End the block. The first reason stands; later ones are ignored."""
        if self._reason is None and self._task is not None:
            self._reason = reason
            self._task.cancel()

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.interrupt(Reason.CLIENT_GONE)

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._tick)
        self._timer_at = when

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        if now >= self._total_at:
            return self.interrupt(Reason.TOTAL)
        if self._first_byte_at is not None:
            due, reason = self._first_byte_at, Reason.FIRST_BYTE
        else:
            due, reason = (self.reading_since or now) + self._between_s, Reason.BETWEEN_CHUNKS
        if now >= due:
            return self.interrupt(reason)
        self._arm(min(due, self._total_at))
