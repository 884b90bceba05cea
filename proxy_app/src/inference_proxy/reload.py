"""Reloads changed files while requests run: config.yml, the keys and the markers of drained engines."""

import asyncio
import logging
from pathlib import Path

from inference_proxy.config import ConfigError
from inference_proxy.settings import Settings
from inference_proxy.state import State

_INTERVAL_S = 0.5

log = logging.getLogger(__name__)

_Signature = tuple[int, int, int] | None


class Watcher:
    """Checks the files twice a second, and at once on `poke()`.

    A file that cannot be used changes nothing: it is reported once in the log, and in /health/ready, and
    tried again until it can be used.
    """

    def __init__(self, path: Path, state: State) -> None:
        self._path = path
        self._state = state
        self._poked = asyncio.Event()
        self._seen = self._look()

    def poke(self) -> None:
        self._poked.set()

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_INTERVAL_S):
                    await self._poked.wait()
            except TimeoutError:
                pass
            try:
                await self._turn()
            except Exception:
                # Whatever failed, the next check must happen: without it no key could ever be revoked again.
                log.exception("looking for changed files failed")

    async def _turn(self) -> None:
        asked, seen = self._poked.is_set(), self._look()
        self._poked.clear()
        self._state.look_for_drained()
        if asked or seen != self._seen or self._state.config_error is not None:
            await self._reload()
            self._seen = seen

    async def _reload(self) -> None:
        state = self._state
        try:
            settings = await asyncio.to_thread(Settings.load, self._path)
        except ConfigError as error:
            if str(error) != state.config_error:
                log.error("configuration refused, the old one stays: %s", error)
            state.config_error = str(error)
            return
        state.reconfigure(settings)
        state.config_error = None
        log.info("configuration loaded: %d engines", len(settings.config.engines))

    def _look(self) -> tuple[_Signature, _Signature]:
        return _signature(self._path), _signature(self._state.settings.config.keys_file)


def _signature(path: Path) -> _Signature:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
