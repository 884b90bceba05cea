"""One worker: uvicorn around the application, and an orderly shutdown."""

import asyncio
import gc
import logging
import socket
from pathlib import Path

import uvicorn

from inference_proxy.api.errors import error_body
from inference_proxy.app import Proxy
from inference_proxy.http.server_protocol import Protocol, close_idle
from inference_proxy.http.tcp import probe_when_silent
from inference_proxy.settings import Settings
from inference_proxy.state import State
from inference_proxy.systemd import notify, notify_alive

# How long /health/ready returns 503 while connections are still accepted, so that load balancers turn away
# first.
_NOTICE_S = 0.5
# Longer than nginx keeps an idle upstream connection (4 s): the side that sends next should be the one that
# closes.
_KEEP_ALIVE_S = 75
# In uvicorn's ticks, a tenth of a second each.
_TICKS_PER_SWEEP = 50
# How many more objects created than freed trigger a collection: those of a few hundred streams, or some MB
# that failed requests left.
_COLLECT_AFTER = 20_000
# How long after its start a worker with a fault may end itself, in ticks: so it cannot restart in a tight
# loop.
_TICKS_TO_REPAIR = 600
# For answers to the requests that are ended after shutdown_s.
_FAREWELL_S = 10

log = logging.getLogger(__name__)


class ApiProtocol(Protocol):
    """Gives the protocol's own answers the API's shape."""

    def error_body(self, code: str, message: str) -> bytes:
        return error_body(message, "invalid_request_error", None, code)


class Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self._state = state

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then notify systemd: a worker that dies before that has failed to start."""
        await super().startup(sockets)
        if self.started:
            for server in self.servers:
                for listener in server.sockets:
                    probe_when_silent(listener)
            _freeze_startup_objects()
            notify("READY=1")

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_PER_SWEEP == 0:
            now = asyncio.get_running_loop().time()
            close_idle(self.server_state.connections, now, _KEEP_ALIVE_S)
            notify_alive()
            if counter >= _TICKS_TO_REPAIR:
                self._end_if_damaged()
        return await super().on_tick(counter)

    def _end_if_damaged(self) -> None:
        """End a worker with a fault while it has no requests, which harms none; systemd starts it again."""
        reason = self._state.faults.reason
        if reason is not None and not self._state.guards:
            log.critical("this worker ends, to be started anew: %s", reason)
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down gracefully.

        Become unready, then accept nothing new, let requests finish for shutdown_s, and end the rest with an
        error.
        """
        self._state.stopping = True
        notify("STOPPING=1")
        await asyncio.sleep(_NOTICE_S)
        patience_s = self._state.settings.config.shutdown_s
        ending = asyncio.get_running_loop().call_later(patience_s, self._state.interrupt_all)
        self.config.timeout_graceful_shutdown = int(patience_s) + _FAREWELL_S
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()


def _freeze_startup_objects() -> None:
    """Freeze startup objects and collect rarely: requests leave no cycles.

    A collection stops all streams, for a microsecond per object.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


def make_server(config_path: Path, host: str, port: int) -> Server:
    """Create the server. Raises ConfigError if the configuration cannot be used."""
    state = State(Settings.load(config_path), port)
    config = uvicorn.Config(
        Proxy(config_path, state),
        host=host,
        port=port,
        loop="uvloop",
        http=ApiProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    return Server(config, state)
