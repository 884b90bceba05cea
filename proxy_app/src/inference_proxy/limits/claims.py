"""What a request takes from which counters, and what it has used in the end."""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from urllib.parse import quote

import msgspec

from inference_proxy.accounting.exchange import Exchange
from inference_proxy.api.dialects import RESPONSES
from inference_proxy.api.errors import Unavailable
from inference_proxy.api.numbers import MOST_TOKENS
from inference_proxy.config import POOLING, UTILITY, LimitsConfig, RateLimits, Span, rate_limits
from inference_proxy.keys.authenticate import Key
from inference_proxy.limits.store import PERIOD, PLACES, WINDOW, Claim, Standing
from inference_proxy.request.job import Job

_PREFIX = "inference-proxy"
_DAY_S = 86_400
# The same as in request/estimate.py, for a prompt.
_BYTES_PER_TOKEN = 4
# The events of a response are numbered. A client's own tools may contain such a number, too, but before the
# event's.
_EVENT_NUMBER = re.compile(rb'"sequence_number":\s*(\d{1,9})\b')
_NONE = RateLimits()
_HEADER_PARTS = (b"limit-", b"remaining-", b"reset-")


class Limit(msgspec.Struct, frozen=True):
    """One limit of a key.

    `field` is its name in the configuration. `model` is None if it covers all of a key's models together.
    `claim` is what a request takes from it, and is the template for one if `tokens` are counted.
    """

    claim: Claim
    field: str
    model: str | None
    tokens: bool


class Plan(msgspec.Struct, eq=False):
    """The limits of one key for one model, in the order in which a refusal checks them.

    `standings` is how they stood when the latest request came, at `seen` by time.monotonic(). `reported` are
    the headers that answers get, and which limits each is about: the tightest one counts.
    """

    key: str
    limits: Sequence[Limit]
    reported: Sequence[tuple[tuple[bytes, ...], Sequence[int]]]
    claims: Sequence[Claim] = ()
    standings: Sequence[Standing] = ()
    seen: float = 0.0

    def claim(self, least: int, most: int) -> list[Claim]:
        """What a request takes that reserves this many tokens (see reserved_tokens)."""
        claims = []
        for limit in self.limits:
            claim = limit.claim
            if limit.tokens:
                cost = most if most <= claim.limit else max(claim.limit, least)
                claim = Claim(claim.counter, claim.kind, claim.limit, cost, claim.ends_ms)
            claims.append(claim)
        return claims


class Plans:
    """A plan per key, model and whether tokens count.

    Cached until the configuration or the day (UTC) changes.
    """

    def __init__(self) -> None:
        self._config: LimitsConfig | None = None
        self._day = 0
        self._known: dict[tuple[Key, str, bool], Plan] = {}

    def __iter__(self) -> Iterator[Plan]:
        return iter(self._known.values())

    def of(self, job: Job, config: LimitsConfig, now: float) -> Plan:
        """The plan for a job. `now` is time.time()'s."""
        day = int(now) // _DAY_S
        if self._config is not config or self._day != day:
            self._config, self._day, self._known = config, day, {}
        asked = job.asked
        who = asked.key, job.model, asked.endpoint.kind is not UTILITY
        plan = self._known.get(who)
        if plan is None:
            plan = self._known[who] = _plan(*who, config, datetime.fromtimestamp(now, UTC).date())
        return plan


def _plan(key: Key, model: str, tokens: bool, config: LimitsConfig, today: date) -> Plan:
    limits = [limit for limit in _limits(key, model, config, today) if tokens or not limit.tokens]
    reported = []
    for what in (b"requests", b"tokens"):
        members = [
            at
            for at, limit in enumerate(limits)
            if limit.tokens == (what == b"tokens") and limit.claim.kind is not PLACES
        ]
        if members:
            reported.append((tuple(b"x-ratelimit-" + part + what for part in _HEADER_PARTS), members))
    return Plan(key.name, limits, reported)


def _limits(key: Key, model: str, config: LimitsConfig, today: date) -> Iterator[Limit]:
    # In a cluster, the braces keep all counters of a key on one node, as scripts require.
    base = f"{_PREFIX}:{{{quote(key.name, safe='')}}}"
    yield from _of(key.limits, config.default, base, None, today)
    own, general = key.limits.models.get(model), config.models.get(model)
    if own or general:
        yield from _of(own or _NONE, general or _NONE, f"{base}:{quote(model, safe='')}", model, today)


def _of(own: RateLimits, general: RateLimits, scope: str, model: str | None, today: date) -> Iterator[Limit]:
    for field, counted in _LIMITS.items():
        if most := getattr(own, field) or getattr(general, field):
            period, ends_ms = _PERIODS.get(counted.span, _no_period)(today)
            claim = Claim(f"{scope}:{field}{period}", _KINDS[counted.span], most, 1, ends_ms)
            yield Limit(claim, field, model, counted.tokens)


def _no_period(_: date) -> tuple[str, int]:
    return "", 0


def _day(day: date) -> tuple[str, int]:
    return f":{day:%Y-%m-%d}", _start_ms(day + timedelta(days=1))


def _month(day: date) -> tuple[str, int]:
    return f":{day:%Y-%m}", _start_ms((day.replace(day=1) + timedelta(days=31)).replace(day=1))


_LIMITS = rate_limits()
_KINDS = {Span.MOMENT: PLACES, Span.MINUTE: WINDOW, Span.DAY: PERIOD, Span.MONTH: PERIOD}
# Per period: the end of a counter's name, and when the period ends, in milliseconds since 1970.
_PERIODS = {Span.DAY: _day, Span.MONTH: _month}


def _start_ms(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp()) * 1000


def reserved_tokens(job: Job, config: LimitsConfig) -> tuple[int, int]:
    """The least and the most tokens to reserve: the prompt's estimate and what may be generated.

    They differ if there is no cap: then the most includes a configured guess, which is cut down to a limit
    that is smaller than it.
    """
    asked = job.asked
    prompt = max(asked.prompt_tokens, 1)
    if asked.endpoint.kind is POOLING:
        return prompt, prompt
    if job.max_tokens is not None:
        capped = min(prompt + job.max_tokens * asked.choices, MOST_TOKENS)
        return capped, capped
    return prompt, min(prompt + config.tokens_without_cap * asked.choices, MOST_TOKENS)


def used_tokens(job: Job, exchange: Exchange, error: BaseException | None) -> tuple[int, int]:
    """Tokens of prompt and answer: the engine's own numbers, or else estimates.

    The prompt, and what was relayed, are estimated if the engine was cut off before it reported its numbers.
    Zero for a request that no engine began, or that only counts tokens itself.
    """
    if job.asked.endpoint.kind is UTILITY:
        return 0, 0
    prompt, completion = exchange.usage()
    if prompt is None and completion is None and (exchange.engine is None or _refused(exchange, error)):
        return 0, 0
    if job.asked.endpoint.kind is POOLING:
        completion = 0
    elif completion is None or error is not None:
        completion = max(completion or 0, relayed_tokens(exchange))
    return job.asked.prompt_tokens if prompt is None else prompt, completion


def _refused(exchange: Exchange, error: BaseException | None) -> bool:
    """Whether the engine refused the request, or the request ended before its first byte.

    The exception is a client that left: the engine may have worked for it.
    """
    if exchange.status >= 400 or (not exchange.stream and exchange.outcome != "ok"):
        # An error in a 200 that is not a stream: there is no other answer.
        return True
    return error is not None and exchange.first_byte is None and not exchange.client_left


def relayed_tokens(exchange: Exchange) -> int:
    """An estimate of the tokens that were relayed.

    One event of a stream has about one token, and its last events are as long as the others. Any other body
    counts by its bytes, like a prompt.
    """
    tail = b"".join(exchange.tail)
    if exchange.stream and exchange.dialect is RESPONSES and (numbers := _EVENT_NUMBER.findall(tail)):
        # The first events repeat the client's input and the last ones the whole text, so their lengths say
        # little.
        return min(int(numbers[-1]), exchange.bytes_out)
    events = tail.count(b"\n\n") if exchange.stream else 0
    return exchange.bytes_out * events // len(tail) if events else exchange.bytes_out // _BYTES_PER_TOKEN


def changes(
    plan: Plan, claims: Sequence[Claim], exchange: Exchange, error: BaseException | None
) -> list[int]:
    """How each claim has to change at the end of the request.

    A request that did not run for lack of capacity has taken nothing, and does not count as a request either.
    """
    if isinstance(error, Unavailable) or exchange.status == 503:
        return [-claim.cost for claim in claims]
    used = sum(exchange.used)
    pairs = zip(plan.limits, claims, strict=True)
    return [used - claim.cost if limit.tokens else 0 for limit, claim in pairs]
