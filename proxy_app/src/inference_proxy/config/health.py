"""Sections `health` and `retries`: how to treat engines that do not answer as they should."""

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from inference_proxy.config.types import Strict


class Health(Strict):
    stall_s: PositiveFloat = Field(
        default=60,
        description="Seconds without a token after which an engine that has requests counts as hung.",
    )
    probe_after_s: PositiveFloat = Field(
        default=60,
        description="Seconds without a token after which an engine that runs nothing is asked for one.",
    )
    probe_timeout_s: PositiveFloat = Field(default=30, description="Seconds in which that token has to come.")
    failures: PositiveInt = Field(
        default=5,
        description="Broken answers, more than complete ones make up for, after which an engine is ejected.",
    )
    cool_down_s: PositiveFloat = Field(
        default=10, description="Seconds until an ejected engine is probed, to be taken back."
    )
    max_ejected_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Most of a model's engines, as a share, that failed requests may eject at a time.",
    )


class Retries(Strict):
    attempts: PositiveInt = Field(default=2, description="Engines that a request may be tried at, in all.")
    share: float = Field(default=0.1, ge=0, le=1, description="Retries for each request, on average.")
    burst: PositiveInt = Field(default=20, description="Retries that may be saved up.")
    backoff_s: NonNegativeFloat = Field(
        default=0.05, description="Longest random wait before a retry, in seconds."
    )
