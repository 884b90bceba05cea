"""Section `timeouts`: the parameters of four clocks. request/clocks.py has the formula."""

from pydantic import Field, NonNegativeFloat, PositiveFloat

from inference_proxy.config.types import Name, Strict

MEDIUM = "medium"


class TotalLimits(Strict):
    """The most seconds in all, by the class of the endpoint, whatever a request asks for."""

    generation: PositiveFloat = 3600
    pooling: PositiveFloat = 600
    audio: PositiveFloat = 1800
    utility: PositiveFloat = 45


class Timeouts(Strict):
    connect_s: PositiveFloat = Field(default=5, description="Seconds to connect to an engine.")
    first_byte_s: PositiveFloat = Field(
        default=300, description="Seconds to the first byte of an answer, before what the next two add."
    )
    per_1k_prompt_tokens_s: NonNegativeFloat = Field(
        default=2, description="Seconds more to the first byte, per 1,000 tokens of the prompt."
    )
    per_waiting_request_s: NonNegativeFloat = Field(
        default=0.5, description="Seconds more to the first byte, per request that waits in the engine."
    )
    between_chunks_s: PositiveFloat = Field(
        default=120, description="Seconds between two chunks of an answer."
    )
    per_token_s: PositiveFloat = Field(
        default=0.25, description="Seconds in all, besides those to the first byte, per token to generate."
    )
    size_factors: dict[Name, PositiveFloat] = Field(
        default={"small": 0.5, MEDIUM: 1, "large": 2},
        description="What a model's `size` multiplies all of these by, but connecting and waiting.",
    )
    total_s: TotalLimits = Field(
        default=TotalLimits(), description="Most seconds in all, for each class of endpoint."
    )
