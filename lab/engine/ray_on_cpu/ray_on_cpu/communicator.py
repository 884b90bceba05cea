"""How ranks on CPU exchange tensors."""

from __future__ import annotations

from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator


class BetweenHosts(CpuCommunicator):  # type: ignore[misc]  # mypy runs without vLLM
    """By gloo. vLLM believes that ranks of Ray are on one host and share its memory."""

    def _all_group_ranks_share_shm_group_name(self) -> bool:
        return False
