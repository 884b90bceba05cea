"""A modest, continuous load that notices every failed request and every stream that was cut."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

import httpx2
from openai import OpenAI

from helpers.stack import MODEL, openai_client

# As many tokens as take the lab's engine about a second: a restart without a drain would cut a stream.
STREAM_TOKENS, JSON_TOKENS = 80, 20
# Between two requests of one client. An engine that generates fills a core and a half, and spins for a second afterwards; two cores
# are all that the load and the roll, which is what is watched, have.
PAUSE_S = 6.0
MESSAGES = [{"role": "user", "content": "hello"}]


@dataclass
class Tally:
    """What the load has seen; `failures` holds a line each, with when and what."""

    streams: int = 0
    answers: int = 0
    failures: list[str] = field(default_factory=list)


class Load:
    """Streams and JSON calls over HTTPS for as long as the `with` block runs."""

    def __init__(self, *, streams: int = 2, calls: int = 1) -> None:
        self.tally = Tally()
        self._began = time.monotonic()
        self._stop = threading.Event()
        workers = [self._stream] * streams + [self._call] * calls
        self._threads = [threading.Thread(target=self._work, args=(one,), daemon=True) for one in workers]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=180)
        assert not [thread for thread in self._threads if thread.is_alive()], "a request of the load never ended"

    def assert_unharmed(self) -> None:
        """Fail with every failure seen, or when the load was none."""
        assert self.tally.failures == [], "\n".join(self.tally.failures)
        assert self.tally.streams > 0
        assert self.tally.answers > 0

    def _work(self, one: object) -> None:
        # A connection a request: nginx closes idle kept-alive connections when it reloads, and a client that
        # sends just then must retry, as RFC 9112 section 9.3.1 has it. That race is the client's own.
        client = openai_client(
            http_client=httpx2.Client(limits=httpx2.Limits(max_keepalive_connections=0), timeout=120)
        )
        while not self._stop.wait(PAUSE_S):
            began = time.monotonic() - self._began
            try:
                one(client)  # type: ignore[operator]
            except Exception as error:
                kind = getattr(one, "__name__", "request")
                self.tally.failures.append(
                    f"at {began:.1f} s {kind}: {type(error).__name__}: {error} ({error.__cause__!r})"
                )
        client.close()

    def _stream(self, client: OpenAI) -> None:
        tokens, reason = 0, None
        for chunk in client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            stream=True,
            max_tokens=STREAM_TOKENS,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        ):
            reason = chunk.choices[0].finish_reason or reason if chunk.choices else reason
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        # An engine that is stopped ends its streams as if all were well, with another reason: count what came.
        assert (tokens, reason) == (STREAM_TOKENS, "length"), f"stream cut: {tokens} tokens, finish_reason {reason}"
        self.tally.streams += 1

    def _call(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=JSON_TOKENS, extra_body={"ignore_eos": True}
        )
        assert answer.usage.completion_tokens == JSON_TOKENS, f"answer cut: {answer.usage}"
        self.tally.answers += 1
