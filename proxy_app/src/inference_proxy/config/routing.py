"""Section `routing`: which engine gets a request."""

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from inference_proxy.config.types import Name, Strict


class Pool(Strict):
    """Which requests go to engines with this `pool`: those that reach one of the two sizes."""

    prompt_tokens: PositiveInt | None = Field(
        default=None, description="Tokens of the prompt, as estimated from its bytes, from which on."
    )
    max_tokens: PositiveInt | None = Field(default=None, description="Tokens to generate, from which on.")

    @model_validator(mode="after")
    def _not_for_nothing(self) -> "Pool":
        if self.prompt_tokens is None and self.max_tokens is None:
            raise ValueError("give prompt_tokens, max_tokens or both")
        return self


class Routing(Strict):
    affinity_bound: float = Field(
        default=1.25,
        ge=1,
        le=10,
        description="Affinity may load an engine with at most so many times its fair share of the model's "
        "outstanding tokens.",
    )
    affinity_free_tokens: NonNegativeInt = Field(
        default=16384,
        description="Outstanding tokens, at an engine of weight 1, up to which affinity holds whatever the "
        "others have.",
    )
    prefix_block_bytes: PositiveInt = Field(
        default=1024, description="Bytes of a block of the prompt. Shorter prompts have no prefix affinity."
    )
    prefix_blocks: NonNegativeInt = Field(
        default=32, description="Most leading blocks that count; 0 turns prefix affinity off."
    )
    assumed_tokens: PositiveInt = Field(
        default=512, description="Tokens that a request is taken to generate if it names no cap."
    )
    pools: dict[Name, Pool] = Field(
        default={}, description="Requests by size, to engines of that `pool`; the first that fits counts."
    )
