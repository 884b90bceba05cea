"""Where the admin API listens: beside the worker's own port, in the worker's own process and event loop."""

import logging
import os
import socket

import uvicorn

from inference_proxy.admin.api import Admin
from inference_proxy.state import State

# Of requests to it. A scrape is short, and one who waits for an engine to be idle can ask again.
_GRACE_S = 1

log = logging.getLogger(__name__)

_Where = tuple[str, int]


class AdminServer:
    """Follows the configuration: `follow` opens, moves or closes it."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._where: _Where | None = None
        self._server: uvicorn.Server | None = None

    async def follow(self) -> None:
        """Listen where the configuration says. Raises OSError if that cannot be; then nothing has changed."""
        config = self._state.settings.config.admin
        where = None if config is None else (config.address, self._state.worker + config.port_offset)
        if where == self._where:
            return
        server = None if where is None else await _listen(Admin(self._state), where)
        await self.close()
        self._where, self._server = where, server

    async def follow_or_stay(self) -> None:
        """The same for a worker that serves: it goes on with what it has, and says so."""
        try:
            await self.follow()
        except OSError as error:
            log.error("%s; it stays where it was", error)

    async def close(self) -> None:
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
        # Bound here, since uvicorn ends the process where it cannot.
        listener = socket.create_server(where, family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise OSError(f"the admin API cannot listen on {address} port {port} ({why}): see `admin`") from error
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    return server
