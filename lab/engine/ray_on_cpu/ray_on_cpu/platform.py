"""vLLM's CPU platform, whose ranks take for a GPU what a node of Ray says is one (``ray start --num-gpus``)."""

from __future__ import annotations

from vllm.platforms.cpu import CpuPlatform


class RayOnCpu(CpuPlatform):  # type: ignore[misc]  # mypy runs without vLLM
    # vLLM refuses Ray on a platform without it.
    ray_device_key = "GPU"

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        return "ray_on_cpu.communicator.BetweenHosts"
