"""Section `queue`: requests that wait until an engine has room."""

from pydantic import Field, PositiveFloat, PositiveInt

from inference_proxy.config.types import Strict


class Queue(Strict):
    max_in_flight: PositiveInt = Field(
        default=2048,
        description="Requests at once at an engine of weight 1, this worker's and, as far as its gauges "
        "tell, all others'. An engine's own max_in_flight wins.",
    )
    max_waiting: PositiveInt = Field(
        default=512, description="Requests that may wait, for each model and worker."
    )
    max_wait_s: PositiveFloat = Field(default=30, description="Seconds that a request may wait.")
