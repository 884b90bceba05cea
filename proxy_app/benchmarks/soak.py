"""`make soak`: one worker under everything that happens in a day, long enough to see a leak.

Continuous streams and small answers; clients that leave, and clients that do not read; a key that is added
and revoked every two seconds, and unknown keys; engines that are killed; metrics that are scraped. It passes
if nothing was lost and the worker's memory did not grow.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import yaml

from .candidates import CANDIDATES, ROOT, Ground, Missing, find, free_ports, running, wait_until_serving
from .measure import KEY, usage
from .prepare import compile_native, install, two_cores

# How many clients of each kind there are, and how often things happen.
STREAMS, CALLS, LEAVERS, SLEEPERS = 64, 4, 8, 16
STREAM_TOKENS, STREAM_GAP_US = 100, 20_000
CALL_PAUSE_S, STRANGER_PAUSE_S = 0.05, 0.1
SLEEP_S = 15.0
KEY_CHANGE_S, KEY_LIVE_S = 2.0, 1.0
ENGINE_UP_S, ENGINE_DOWN_S = 20.0, 2.0
SAMPLE_S = 2.0
# What must hold. The beginning, in which pools and tables fill up, does not count.
WARM_SHARE, FLAT_SHARE, MOST_MB = 0.15, 0.05, 120.0
WINDOWS = 10
EXPECTED = ("stream ok", "call ok", "left", "slept", "stranger 401", "new key", "old key", "engine killed")

_ANSWER_S = 60.0


@dataclass
class Tally:
    """What was observed: answers by kind and outcome, descriptions of failures, megabytes by time."""

    outcomes: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    key_live_s: list[float] = field(default_factory=list)
    rss_mb: list[tuple[float, float]] = field(default_factory=list)

    def windows_mb(self) -> list[float]:
        """Means of equal parts of the time after the beginning."""
        values = [mb for _, mb in self.rss_mb][int(len(self.rss_mb) * WARM_SHARE) :]
        size = max(1, len(values) // WINDOWS)
        return [round(mean(values[at : at + size]), 2) for at in range(0, len(values) - size + 1, size)]

    def problems(self) -> list[str]:
        found = [f"lost: {line}" for line in self.lost[:20]]
        windows = self.windows_mb()
        middle = median(windows)
        if max(abs(mb - middle) for mb in windows) > FLAT_SHARE * middle:
            found.append(f"memory is not flat: {windows} MB")
        if (most := max(mb for _, mb in self.rss_mb)) > MOST_MB:
            found.append(f"{most:.0f} MB is more than {MOST_MB:.0f}")
        if (slowest := max(self.key_live_s, default=0.0)) > KEY_LIVE_S:
            found.append(f"a change of keys was live after {slowest:.2f} s only")
        expected = (
            "stream ok",
            "call ok",
            "left",
            "slept",
            "stranger 401",
            "new key",
            "old key",
            "engine killed",
        )
        found += [f"this never happened: {what}" for what in expected if not self.outcomes[what]]
        return found

    def report(self) -> dict[str, Any]:
        return {
            "outcomes": dict(sorted(self.outcomes.items())),
            "lost": self.lost,
            "key_live_s_max": round(max(self.key_live_s, default=0.0), 3),
            "rss_mb_windows": self.windows_mb(),
            "rss_mb_most": round(max(mb for _, mb in self.rss_mb), 1),
            "rss_mb": [(round(at), round(mb, 2)) for at, mb in self.rss_mb],
        }


@dataclass
class Soak:
    """One worker, two engines and all their clients."""

    tally: Tally
    port: int
    admin_port: int
    directory: Path
    engines: list[asyncio.subprocess.Process]
    start_engine: Callable[[int], Awaitable[asyncio.subprocess.Process]]
    root: int

    async def run(self, seconds: float) -> None:
        doers = [
            *[self.stream] * STREAMS,
            *[self.call] * CALLS,
            *[self.leave] * LEAVERS,
            *[self.sleep] * SLEEPERS,
            *(self.stranger, self.change_keys, self.kill_engines, self.scrape, self.sample),
        ]
        tasks = [asyncio.create_task(self._forever(do)) for do in doers]
        try:
            done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _forever(self, do: Callable[[], Awaitable[None]]) -> None:
        # Start at different times.
        await asyncio.sleep(random.random())
        while True:
            await do()

    async def stream(self) -> None:
        answer = await self._ask("stream", tokens=STREAM_TOKENS, stream=True, gap_us=STREAM_GAP_US)
        if b"data: [DONE]" in answer and answer.count(b'"content":" @') == STREAM_TOKENS:
            self.tally.outcomes["stream ok"] += 1
        else:
            self._expect_engine_error("stream", answer)

    async def call(self) -> None:
        answer = await self._ask("call", tokens=16)
        if answer.startswith(b"HTTP/1.1 200 ") and b'"completion_tokens":16' in answer:
            self.tally.outcomes["call ok"] += 1
        else:
            self._expect_engine_error("call", answer)
        await asyncio.sleep(CALL_PAUSE_S)

    async def leave(self) -> None:
        reader, writer = await self._open(KEY, tokens=1000, stream=True, gap_us=STREAM_GAP_US)
        # Not wait_for: before Python 3.12 it can swallow the cancellation that ends the soak.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(random.random()):
                await reader.read(65536)
        writer.transport.abort()
        self.tally.outcomes["left"] += 1
        await asyncio.sleep(random.random())

    async def sleep(self) -> None:
        """Request a hundred megabytes and read none of them."""
        reader, writer = await self._open(KEY, tokens=500_000, stream=True, gap_us=0, limit=1024)
        await asyncio.sleep(SLEEP_S * (0.5 + random.random()))
        writer.transport.abort()
        del reader
        self.tally.outcomes["slept"] += 1

    async def stranger(self) -> None:
        answer = await self._ask("stranger", key=secrets.token_hex(24), tokens=1)
        self.tally.outcomes[f"stranger {status(answer)}"] += 1
        await asyncio.sleep(STRANGER_PAUSE_S)

    async def change_keys(self) -> None:
        """Add a key, which must be valid within a second, then revoke it, which must take effect as fast."""
        new = secrets.token_hex(24)
        for keys, wanted, what in (((KEY, new), 200, "new key"), ((KEY,), 401, "old key")):
            write_keys(self.directory, keys)
            written = time.monotonic()
            while status(await self._ask("key", key=new, tokens=1)) != wanted:
                if time.monotonic() - written > 10 * KEY_LIVE_S:
                    self.tally.lost.append(f"{what}: still not {wanted}")
                    break
            self.tally.key_live_s.append(time.monotonic() - written)
            self.tally.outcomes[what] += 1
            await asyncio.sleep(KEY_CHANGE_S / 2)

    async def kill_engines(self) -> None:
        for number in range(len(self.engines)):
            await asyncio.sleep(ENGINE_UP_S)
            self.engines[number].kill()
            await self.engines[number].wait()
            self.tally.outcomes["engine killed"] += 1
            await asyncio.sleep(ENGINE_DOWN_S)
            self.engines[number] = await self.start_engine(number)

    async def scrape(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.admin_port)
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        async with asyncio.timeout(_ANSWER_S):
            page = await reader.read()
        writer.close()
        self.tally.outcomes[f"scrape {status(page)}"] += 1
        await asyncio.sleep(5)

    async def sample(self) -> None:
        self.tally.rss_mb.append((time.monotonic(), usage(self.root).rss_mb))
        await asyncio.sleep(SAMPLE_S)

    async def _open(
        self, key: str, *, tokens: int, stream: bool = False, gap_us: int = 0, limit: int = 2**16
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        body = json.dumps(
            {
                "model": "mock",
                "messages": [{"role": "user", "content": secrets.token_hex(random.randrange(8, 2000))}],
                "max_tokens": tokens,
                "seed": gap_us,
                "stream": stream,
            }
        ).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            f"authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=limit)
        writer.write(head.encode() + body)
        return reader, writer

    async def _ask(self, what: str, key: str = KEY, **wanted: Any) -> bytes:
        """The whole answer; b"" if there was none."""
        try:
            reader, writer = await self._open(key, **wanted)
            try:
                async with asyncio.timeout(_ANSWER_S):
                    return await reader.read()
            finally:
                writer.transport.abort()
        except (OSError, TimeoutError) as error:
            self.tally.lost.append(f"{what}: {error!r}")
            return b""

    def _expect_engine_error(self, what: str, answer: bytes) -> None:
        """An engine was killed: its client must get an error with a code."""
        if answer and b'"error":' in answer and b'"code":"engine_' in answer:
            self.tally.outcomes[f"{what} told"] += 1
        else:
            self.tally.lost.append(f"{what}: {answer[:200]!r} … {answer[-200:]!r}")


def status(answer: bytes) -> int:
    return int(answer[9:12] or 0)


def write_keys(directory: Path, keys: Sequence[str]) -> None:
    entries = [
        {"name": f"key{number}", "sha256": hashlib.sha256(key.encode()).hexdigest(), "models": []}
        for number, key in enumerate(keys)
    ]
    path = directory / "keys.new"
    path.write_text(yaml.safe_dump(entries))
    path.replace(directory / "keys.yml")


async def soak(minutes: float) -> Tally:
    # Exit as on an interrupt: processes that were started must not outlive this one.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    cores = two_cores()
    program = compile_native(find("gcc"), "engine")
    ours = CANDIDATES["ours"]
    venv = install(ours)
    *engine_ports, port, admin_port = free_ports(4)

    async def start_engine(number: int) -> asyncio.subprocess.Process:
        on_its_core = ("taskset", "--cpu-list", str(cores[1]), program)
        return await asyncio.create_subprocess_exec(*on_its_core, str(engine_ports[number]))

    engines: list[asyncio.subprocess.Process] = []
    with tempfile.TemporaryDirectory() as directory:
        try:
            for number in range(len(engine_ports)):
                engines.append(await start_engine(number))
            urls = [f"http://127.0.0.1:{one}" for one in engine_ports]
            ground = Ground(Path(directory), venv, port, admin_port, urls)
            command = ours.prepare(ground)
            write_keys(ground.directory, [KEY])
            with running(command, ground.directory, cores[0], ours.environment) as root:
                await asyncio.to_thread(wait_until_serving, port, ground.directory / "log", root)
                tally = Tally()
                doing = Soak(tally, port, admin_port, ground.directory, engines, start_engine, root)
                await doing.run(60 * minutes)
        finally:
            for engine in engines:
                if engine.returncode is None:
                    engine.kill()
                    await engine.wait()
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--output", type=Path, default=ROOT / "soak.json")
    options = parser.parse_args()
    try:
        tally = asyncio.run(soak(options.minutes))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("soak: interrupted", file=sys.stderr)
        return 1
    except Missing as missing:
        print(f"soak: {missing}", file=sys.stderr)
        return 2
    report = tally.report()
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    for name in ("outcomes", "key_live_s_max", "rss_mb_windows", "rss_mb_most"):
        print(f"{name}: {report[name]}")
    problems = tally.problems()
    print(*(problems or ["nothing lost, memory flat"]), sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
