"""The admin API's listener: on a port of its own, in the worker's process and event loop."""

import asyncio
import logging
import os
import socket

import uvicorn

from inference_proxy.admin.api import Admin
from inference_proxy.admin.readings import Readings
from inference_proxy.settings import Settings
from inference_proxy.state import State

# For requests to the admin API. A scrape is short, and a request that waits for an engine to be idle can be
# repeated.
_GRACE_S = 1

log = logging.getLogger(__name__)

_Where = tuple[str, int]


class AdminServer:
    """Opens, moves and closes the admin API's listener as configured."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._moving = asyncio.Lock()
        self._moves: set[asyncio.Task[None]] = set()
        self._where: _Where | None = None
        self._server: uvicorn.Server | None = None
        self._readings = Readings(state)

    async def start(self) -> None:
        """Listen where the configuration says. Raises OSError if that is impossible."""
        await self._move()

    def reconfigure(self, _: Settings) -> None:
        """Start the move: binding and closing take a moment. A worker that cannot move keeps its listener."""
        task = asyncio.create_task(self._move_or_stay())
        self._moves.add(task)
        task.add_done_callback(self._moves.discard)

    async def _move_or_stay(self) -> None:
        try:
            await self._move()
        except OSError as error:
            log.error("%s; it stays where it was", error)

    async def _move(self) -> None:
        async with self._moving:
            config = self._state.settings.config.admin
            where = None if config is None else (config.address, self._state.worker + config.port_offset)
            if where == self._where:
                return
            server = None if where is None else await _listen(Admin(self._state, self._readings), where)
            await self._stop()
            self._where, self._server = where, server

    async def close(self) -> None:
        await asyncio.gather(*self._moves)
        await self._stop()

    async def _stop(self) -> None:
        server, self._server, self._where = self._server, None, None
        if server is not None:
            await server.shutdown()


async def _listen(app: Admin, where: _Where) -> uvicorn.Server:
    address, port = where
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    try:
        # Bound here, because uvicorn would end the process if it failed.
        listener = socket.create_server(where, family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise OSError(f"the admin API cannot listen on {address} port {port} ({why}): see `admin`") from error
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    return server
