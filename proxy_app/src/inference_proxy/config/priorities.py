"""Section `priorities`: the classes that keys belong to, by name."""

from pydantic import Field, PositiveInt

from inference_proxy.config.types import Strict


class PriorityClass(Strict):
    share: PositiveInt = Field(
        default=1, description="Its part of the tokens while classes wait, beside the others' shares."
    )
    engine_priority: int = Field(
        default=0,
        ge=-(2**31),
        le=2**31 - 1,
        description="vLLM's priority of its requests: lower is sooner. Other than 0 needs engines that run "
        "with --scheduling-policy priority; others answer 400.",
    )


DEFAULT_PRIORITIES = {
    name: PriorityClass(share=share) for name, share in (("interactive", 8), ("default", 4), ("batch", 1))
}
