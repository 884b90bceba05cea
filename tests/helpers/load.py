"""A small, continuous load that records every failed request and every stream that ended early."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

import httpx2
from openai import OpenAI

from helpers.stack import MODEL, openai_client

# The lab's engine takes about a second for these, so a restart without a drain would end a stream early.
STREAM_TOKENS, JSON_TOKENS = 80, 20
# Between two requests of one client. An engine that generates takes one and a half cores, and a second longer than its request; the load and
# the roll under test share two cores.
PAUSE_S = 10.0
MESSAGES = [{"role": "user", "content": "hello"}]


@dataclass
class Tally:
    """Counts of the load's requests; `failures` has one line per failure, with the time and the error."""

    streams: int = 0
    answers: int = 0
    failures: list[str] = field(default_factory=list)


class Load:
    """Streams and JSON calls over HTTPS for as long as the `with` block runs."""

    def __init__(self, *, streams: int = 2, calls: int = 1, model: str = MODEL) -> None:
        self._model = model
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
        """Fail with all failures, or if there were no requests."""
        assert self.tally.failures == [], "\n".join(self.tally.failures)
        assert self.tally.streams > 0
        assert self.tally.answers > 0

    def _work(self, one: Callable[[OpenAI], None]) -> None:
        # One connection per request: nginx closes idle connections when it reloads, and a client that sends on one at that
        # moment must retry (RFC 9112, section 9.3.1). Clients have to handle that, so it is not counted here.
        with openai_client(
            http_client=httpx2.Client(limits=httpx2.Limits(max_keepalive_connections=0), timeout=120)
        ) as client:
            while not self._stop.wait(PAUSE_S):
                began = time.monotonic() - self._began
                try:
                    one(client)
                except Exception as error:
                    kind = getattr(one, "__name__", "request")
                    self.tally.failures.append(
                        f"at {began:.1f} s {kind}: {type(error).__name__}: {error} ({error.__cause__!r})"
                    )

    def _stream(self, client: OpenAI) -> None:
        tokens, reason = 0, None
        for chunk in client.chat.completions.create(
            model=self._model,
            messages=MESSAGES,
            stream=True,
            max_tokens=STREAM_TOKENS,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        ):
            reason = chunk.choices[0].finish_reason or reason if chunk.choices else reason
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        # A stopped engine ends its streams normally, with another finish_reason, so count the tokens.
        assert (tokens, reason) == (STREAM_TOKENS, "length"), f"stream cut: {tokens} tokens, finish_reason {reason}"
        self.tally.streams += 1

    def _call(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(
            model=self._model, messages=MESSAGES, max_tokens=JSON_TOKENS, extra_body={"ignore_eos": True}
        )
        assert answer.usage.completion_tokens == JSON_TOKENS, f"answer cut: {answer.usage}"
        self.tally.answers += 1
