"""Section `priorities`: the classes that keys belong to, by name."""

from pydantic import Field

from .types import Strict


class PriorityClass(Strict):
    engine_priority: int = Field(
        default=0,
        ge=-(2**31),
        le=2**31 - 1,
        description="vLLM's priority of its requests: lower is sooner. Other than 0 needs engines that run "
        "with --scheduling-policy priority; others answer 400.",
    )


DEFAULT_PRIORITIES = {name: PriorityClass() for name in ("interactive", "default", "batch")}
