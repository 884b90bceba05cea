"""What a request takes from which counters, and what it turned out to have used."""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from urllib.parse import quote

import msgspec

from ..account import Exchange
from ..authenticate import Key
from ..config import POOLING, UTILITY, LimitsConfig
from ..config import Limits as Rates
from ..errors import ApiError, Unavailable
from ..outgoing import Job
from .store import PERIOD, PLACES, WINDOW, Claim

_PREFIX = "inference-proxy"
# As validate.py estimates a prompt.
_BYTES_A_TOKEN = 4
_NONE = Rates()


class Taken(msgspec.Struct, frozen=True):
    """A claim and the limit behind it: `field` is its name in the configuration, `model` None where it holds
    for all of a key's models together, `tokens` whether it counts tokens."""

    claim: Claim
    field: str
    model: str | None
    tokens: bool


class Plan:
    """Which limits hold for whom: worked out once for each key and model, until the configuration or the day
    is another."""

    def __init__(self) -> None:
        self._of: tuple[LimitsConfig | None, date | None] = (None, None)
        # With a cost of 1, which is what one that counts requests takes.
        self._limits: dict[tuple[Key, str], list[Taken]] = {}

    def claims(self, job: Job, config: LimitsConfig, now: datetime) -> list[Taken]:
        """All that the job takes, in the order in which a refusal names it."""
        today = now.date()
        if self._of[0] is not config or self._of[1] != today:
            self._of, self._limits = (config, today), {}
        who = job.asked.key, job.model
        limits = self._limits.get(who)
        if limits is None:
            limits = self._limits[who] = list(_limits(*who, config, today))
        if job.asked.endpoint.kind is UTILITY:
            return [one for one in limits if not one.tokens]
        least, most = reserved_tokens(job, config)
        return [_reserving(one, least, most) if one.tokens else one for one in limits]


def _limits(key: Key, model: str, config: LimitsConfig, today: date) -> Iterator[Taken]:
    # In a cluster all counters of a key lie on one node, as a script needs it.
    base = f"{_PREFIX}:{{{quote(key.name, safe='')}}}"
    yield from _of(key.limits, config.default, base, None, today)
    own, general = key.limits.models.get(model), config.models.get(model)
    if own or general:
        yield from _of(own or _NONE, general or _NONE, f"{base}:{quote(model, safe='')}", model, today)


def _of(own: Rates, general: Rates, scope: str, model: str | None, today: date) -> Iterator[Taken]:
    for field, kind in _FIELDS.items():
        if limit := getattr(own, field) or getattr(general, field):
            period, ends_ms = "", 0
            if kind is PERIOD:
                period, ends_ms = (_day if field == "tokens_per_day" else _month)(today)
                period = f":{period}"
            claim = Claim(f"{scope}:{field}{period}", kind, limit, 1, ends_ms)
            yield Taken(claim, field, model, field.startswith("tokens"))


def _reserving(one: Taken, least: int, most: int) -> Taken:
    known = one.claim
    cost = most if most <= known.limit else max(known.limit, least)
    claim = Claim(known.counter, known.kind, known.limit, cost, known.ends_ms)
    return Taken(claim, one.field, one.model, one.tokens)


_FIELDS = {
    "requests_per_minute": WINDOW,
    "concurrent_requests": PLACES,
    "tokens_per_minute": WINDOW,
    "tokens_per_day": PERIOD,
    "tokens_per_month": PERIOD,
}


def _day(day: date) -> tuple[str, int]:
    return f"{day:%Y-%m-%d}", _start_ms(day + timedelta(days=1))


def _month(day: date) -> tuple[str, int]:
    return f"{day:%Y-%m}", _start_ms((day.replace(day=1) + timedelta(days=31)).replace(day=1))


def _start_ms(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp()) * 1000


def reserved_tokens(job: Job, config: LimitsConfig) -> tuple[int, int]:
    """At least and at most: the estimate of the prompt and the most that may be generated. They differ where
    nobody set a cap: the configuration has a guess, which is not held against a limit smaller than it."""
    asked = job.asked
    prompt = max(asked.prompt_tokens, 1)
    if asked.endpoint.kind is POOLING:
        return prompt, prompt
    if job.max_tokens is not None:
        capped = prompt + job.max_tokens * asked.choices
        return capped, capped
    return prompt, prompt + config.tokens_without_cap * asked.choices


def used_tokens(job: Job, exchange: Exchange, error: BaseException | None) -> tuple[int, int]:
    """Tokens of prompt and of answer: the engine's own numbers; where it told none, because it was cut off,
    the estimate of the prompt and of what was relayed. None at all for a request that no engine began, or
    that only counts tokens itself."""
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
    return exchange.status >= 400 or (isinstance(error, ApiError) and exchange.first_byte is None)


def relayed_tokens(exchange: Exchange) -> int:
    """An estimate: an event of a stream has about one token, and its last events are as long as the others;
    of any other body the bytes are divided as a prompt's are."""
    tail = b"".join(exchange.tail)
    events = tail.count(b"\n\n") if exchange.stream else 0
    return exchange.bytes_out * events // len(tail) if events else exchange.bytes_out // _BYTES_A_TOKEN


def changes(taken: Sequence[Taken], exchange: Exchange, error: BaseException | None) -> list[int]:
    """What each claim has to be changed by at the request's end. One that did not run for lack of our
    capacity has taken nothing, not even a request."""
    if isinstance(error, Unavailable) or exchange.status == 503:
        return [-one.claim.cost for one in taken]
    used = sum(exchange.used)
    return [used - one.claim.cost if one.tokens else 0 for one in taken]
