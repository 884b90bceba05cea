"""GPUs of engines."""

from __future__ import annotations

from typing import Any

import pytest
from preflight_inventory import ENGINE, engine, found


@pytest.mark.parametrize(
    ("first", "second", "number"),
    [
        ({"gpus": [0, 1]}, {"gpus": [1]}, 1),
        ({"gpus": [0]}, {"gpus": [1]}, 0),
        (
            {"gpus": [0], "args": {"gpu-memory-utilization": 0.4}},
            {"gpus": [0], "args": {"gpu-memory-utilization": 0.5}},
            0,
        ),
        (
            {"gpus": [0], "args": {"gpu-memory-utilization": 0.6}},
            {"gpus": [0], "args": {"gpu-memory-utilization": 0.5}},
            1,
        ),
        (
            {"gpus": [0], "args": {"gpu-memory-utilization": 0.5}},
            {"gpus": [0], "args": {"kv-cache-memory-bytes": "8G"}},
            0,
        ),
        ({"gpus": [0], "args": {"kv_cache_memory_bytes": 8_000_000_000}}, {"gpus": [0]}, 1),
        (
            {"gpus": [0, 1], "args": {"tensor-parallel-size": 2, "pipeline-parallel-size": 4, "nnodes": 4}},
            {"gpus": [2]},
            0,
        ),
        ({"gpus": [0], "args": {"tensor-parallel-size": 4, "nnodes": 2}}, {"gpus": [1]}, 1),
        ({"gpus": [0], "args": {"tensor-parallel-size": 2}}, {"gpus": [1]}, 1),
        ({"gpus": [0], "args": {"tensor_parallel_size": "2"}}, {"gpus": [1]}, 1),
        ({"gpus": [0, 2], "args": {"tensor-parallel-size": 2, "pipeline-parallel-size": 2}}, {"gpus": [1]}, 1),
        ({"gpus": [0], "args": {"data-parallel-size": 2}}, {"gpus": [1]}, 1),
        ({"gpus": [0], "args": {"data-parallel-size": 2, "data-parallel-size-local": 1}}, {"gpus": [1]}, 0),
        ({"gpus": [0, 0]}, {"gpus": [1]}, 1),
        # The planner knows how many GPUs the host has, and places those without gpus.
        ({}, {}, 0),
        ({"gpus": [0]}, {}, 0),
        ({"gpus": [1]}, {}, 0),
        ({"gpus": [1]}, {"args": {"tensor-parallel-size": 2}}, 0),
        ({"args": {"gpu-memory-utilization": 0.4}}, {"args": {"gpu-memory-utilization": 0.5}}, 0),
        ({"environment": {"VLLM_CPU_KVCACHE_SPACE": "1"}}, {"environment": {"VLLM_CPU_KVCACHE_SPACE": "1"}}, 0),
        ({"environment": {"CUDA_VISIBLE_DEVICES": "MIG-1"}}, {"environment": {"CUDA_VISIBLE_DEVICES": "MIG-2"}}, 0),
        ({"gpus": [0], "environment": {"CUDA_VISIBLE_DEVICES": "1"}}, {"gpus": [1]}, 1),
    ],
)
def test_engines_share_no_gpu(first: dict[str, Any], second: dict[str, Any], number: int) -> None:
    lines = found(vllm_engines=[ENGINE | first, ENGINE | {"name": "two", "port": 8001} | second])
    assert len(lines) == number, lines


@pytest.mark.parametrize(
    ("every", "number"),
    [
        ({"vllm_args": {"gpu-memory-utilization": 0.4}}, 0),
        ({"vllm_args": {"gpu_memory_utilization": "0.4"}}, 0),
        ({"vllm_args": {"gpu-memory-utilization": 0.6}}, 1),
        ({"vllm_args": {"gpu-memory-utilization": 0.4, "tensor-parallel-size": 2}}, 2),
        ({"vllm_args": {"gpu-memory-utilization": -0.5}}, 2),
        ({"vllm_args": {"gpu-memory-utilization": True}}, 3),
        ({"vllm_environment": {"CUDA_VISIBLE_DEVICES": "0"}, "vllm_args": {"gpu-memory-utilization": 0.4}}, 2),
    ],
)
def test_engines_share_a_gpu_as_options_of_all_engines_say(every: dict[str, Any], number: int) -> None:
    lines = found(vllm_engines=[ENGINE | {"gpus": [0]}, ENGINE | {"name": "two", "port": 8001, "gpus": [0]}], **every)
    assert len(lines) == number, lines


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            {"gpu-memory-utilization": -0.5},
            "gpu-memory-utilization of its args must be a number, more than 0 and at most 1",
        ),
        ({"gpu-memory-utilization": True}, "gpu-memory-utilization of its args must be a number"),
        ({"gpu_memory_utilization": float("nan")}, "gpu_memory_utilization is nan, but must be a finite number"),
        ({"hf-overrides": {"a": [float("inf")]}}, "args.hf-overrides.a[0] is inf, but must be a finite number"),
        ({"tensor-parallel-size": 0}, "tensor-parallel-size of its args must be a whole number, at least 1"),
        ({"tensor_parallel_size": "four"}, "tensor-parallel-size of its args must be a whole number, at least 1"),
        (
            {"pipeline-parallel-size": 10**5000},
            "pipeline-parallel-size is a number of more than 64 bits, but no number may have",
        ),
    ],
)
def test_a_size_that_no_engine_can_have(args: dict[str, Any], said: str) -> None:
    (line,) = found(**engine(args=args))
    assert said in line


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"gpu-memory-utilization": 0.45}, None),
        ({"gpu-memory-utilization": 0.5, "kv-cache-memory-bytes": 10**9}, None),
        ({"gpu-memory-utilization": 0.51}, "each takes gpu-memory-utilization 0.51 of its GPUs' memory"),
        ({"kv-cache-memory-bytes": 10**9}, "each takes gpu-memory-utilization 0.92 (vLLM's default)"),
        ({}, "together more than 1: set gpu-memory-utilization in its args to 0.45, or take beside_port out"),
    ],
)
def test_a_second_engine_during_a_roll_needs_room(args: dict[str, Any], said: str | None) -> None:
    lines = found(**engine(gpus=[0], beside_port=8100, args=args))
    assert len(lines) == (said is not None), lines
    assert said is None or said in lines[0]
    assert found(**engine(beside_port=8100)) == [], "the planner knows whether the host has GPUs"


def test_an_engine_that_shares_a_gpu_counts_twice_during_a_roll() -> None:
    share = {"gpu-memory-utilization": 0.4}
    first = ENGINE | {"gpus": [0], "beside_port": 8100, "args": share}
    (line,) = found(vllm_engines=[first, ENGINE | {"name": "two", "port": 8001, "gpus": [0], "args": share}])
    assert "GPU 0 is given to one and two" in line
