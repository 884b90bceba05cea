"""Usage by day: kept for years in a small SQLite file per worker of a host.

A worker is the only writer of its file, so writers never wait for each other. Readers add up the files.
"""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import msgspec

from inference_proxy.config import UsageConfig
from inference_proxy.settings import Settings

_INTERVAL_S = 5.0
_BUSY_S = 5.0
_SCHEMA = """
create table if not exists usage (
    day text not null, key text not null, owner text not null, model text not null,
    requests integer not null, errors integer not null,
    prompt_tokens integer not null, completion_tokens integer not null,
    primary key (day, key, owner, model)
) without rowid
"""
_ADD = """
insert into usage values (?, ?, ?, ?, ?, ?, ?, ?)
on conflict do update set
    requests = requests + excluded.requests, errors = errors + excluded.errors,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens
"""
_READ = """
select day, key, owner, model, requests, errors, prompt_tokens, completion_tokens from usage
where day between ? and ? and (? is null or key = ?)
"""

log = logging.getLogger(__name__)


class Used(msgspec.Struct):
    """Counts for one day (UTC), key and model.

    `errors` are requests that failed or were refused. Tokens are those that limits count: see
    limits/claims.py.
    """

    day: str
    key: str
    owner: str
    model: str
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, other: "Used") -> None:
        self.requests += other.requests
        self.errors += other.errors
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens


_Where = tuple[str, str, str, str]


class UsageStore:
    """Adds up usage in memory, and writes it every few seconds in a thread.

    A crash loses these seconds; an orderly shutdown loses nothing. What cannot be written is kept and tried
    again: its size depends on the number of keys and models, not of requests.
    """

    def __init__(self, worker: str) -> None:
        self._name = f"usage-{worker}.sqlite"
        self._config: UsageConfig | None = None
        self._batch: dict[_Where, Used] = {}
        self._ending = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._failing = False

    def reconfigure(self, settings: Settings) -> None:
        """Without a section `usage` nothing is counted."""
        self._config = settings.config.usage

    def add(self, used: Used) -> None:
        """Sets `used.day` to today."""
        if self._config is None:
            return
        used.day = today().isoformat()
        where = (used.day, used.key, used.owner, used.model)
        known = self._batch.setdefault(where, used)
        if known is not used:
            known.add(used)

    def start(self) -> None:
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write what is left."""
        self._ending.set()
        if self._running is not None:
            await self._running
        await self.flush()

    async def flush(self) -> None:
        config, batch = self._config, self._batch
        if config is None or not batch:
            return
        self._batch = {}
        try:
            await asyncio.to_thread(_write, config.directory / self._name, batch, config.retention_days)
            self._failing = False
        except (sqlite3.Error, OSError) as error:
            for where, used in batch.items():
                if (newer := self._batch.setdefault(where, used)) is not used:
                    newer.add(used)
            if not self._failing:
                log.error("usage cannot be written to %s: %s", config.directory / self._name, error)
            self._failing = True

    async def _run(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), _INTERVAL_S)
            await self.flush()


def today() -> date:
    return datetime.now(UTC).date()


def default_since(until: date) -> date:
    """The first of thirty days."""
    return until - timedelta(days=29)


def read_usage(directory: Path, since: date, until: date, key: str | None = None) -> list[Used]:
    """Usage of all workers of this host, sorted by day, key and model. Raises OSError, sqlite3.Error.

    `since` and `until` are both included. A worker's last seconds may still be missing.
    """
    total: dict[_Where, Used] = {}
    for path in sorted(directory.glob("usage-*.sqlite")):
        # Opened for writing although nothing is written: after a crash, the first reader has to recover the
        # file.
        with _open(f"{path.as_uri()}?mode=rw") as database:
            for row in database.execute(_READ, (since.isoformat(), until.isoformat(), key, key)):
                used = Used(*row)
                known = total.setdefault((used.day, used.key, used.owner, used.model), used)
                if known is not used:
                    known.add(used)
    return [total[where] for where in sorted(total)]


def _write(path: Path, batch: Mapping[_Where, Used], retention_days: int) -> None:
    with _open(f"{path.as_uri()}?mode=rwc") as database:
        database.execute(_SCHEMA)
        database.executemany(_ADD, [msgspec.structs.astuple(used) for used in batch.values()])
        oldest = today() - timedelta(days=retention_days)
        database.execute("delete from usage where day < ?", (oldest.isoformat(),))


@contextlib.contextmanager
def _open(uri: str) -> Iterator[sqlite3.Connection]:
    """One transaction on a file, which is closed at its end."""
    with contextlib.closing(sqlite3.connect(uri, timeout=_BUSY_S, uri=True)) as database, database:
        yield database
