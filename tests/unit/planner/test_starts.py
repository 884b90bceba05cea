"""The planner's arithmetic against real starts of vLLM, whose logs are public (starts.jsonl)."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from planner_data import MODELS, STARTS
from stack_plan import load

flags, memory, reports, shapes = load("flags"), load("memory"), load("reports"), load("shapes")
TYPES = {row["gpu"]: row for name, row in reports.INSTANCES.items() if not name.startswith("_")}
# Layers with a state per request: logs up to 0.19 divide the tokens by the number of layer groups, newer ones do not.
PER_REQUEST = {"Qwen3.5-27B", "qwen36_27B"}


def version(start: dict[str, Any]) -> tuple[int, int]:
    return reports.version_of(start["vllm"])  # type: ignore[no-any-return]


def planned(start: dict[str, Any]) -> Any:
    """What the planner says of a start: the budget and the shape."""
    gpu = TYPES.get(start["gpu"], {"compute_capability": 8.6, "nvlink": False})
    nvlink = gpu["nvlink"] or "HBM3" in start["gpu"]
    card = memory.Card(start["gpu"], start["gpu_total_gib"], gpu["compute_capability"], nvlink)
    layout = memory.Layout(
        start["tp"],
        start["pp"],
        start["max_num_seqs"] or card.default_seqs,
        start["max_num_batched_tokens"] or card.default_batched_tokens,
        start["gpu_memory_utilization"],
        version(start),
    )
    given = flags.Flags(
        kv_cache_dtype=start["kv_cache_dtype"], quantization=start["quantization"], enforce_eager=start["enforce_eager"]
    )
    shape = shapes.read_shape(MODELS[start["model"]])
    return memory.budget(shape, card, given, layout, start["max_model_len"]), shape


def observed_tokens(start: dict[str, Any]) -> float:
    """The tokens of the KV cache as vLLM 0.33 counts them."""
    return start["max_concurrency"] * start["max_model_len"] if start["model"] in PER_REQUEST else start["kv_tokens"]  # type: ignore[no-any-return]


def error(start: dict[str, Any]) -> float:
    return planned(start)[0].kv_tokens / observed_tokens(start) - 1  # type: ignore[no-any-return]


def name(start: dict[str, Any]) -> str:
    return f"{start['model']}-{start['gpu'].replace(' ', '_')}-tp{start['tp']}-pp{start['pp']}-{start['max_model_len']}-v{start['vllm']}"


# Of EC2's cards, by a version whose memory the constants describe.
CLOSE = [
    start
    for start in STARTS
    if version(start) >= (0, 17) and start["gpu"] in TYPES and start["model"] not in PER_REQUEST
]


@pytest.mark.parametrize("start", CLOSE, ids=name)
def test_tokens_are_within_3_percent(start: dict[str, Any]) -> None:
    assert abs(error(start)) <= 0.03, (planned(start)[0], start)


@pytest.mark.parametrize("start", STARTS, ids=name)
def test_tokens_are_never_5_percent_too_many(start: dict[str, Any]) -> None:
    assert error(start) <= 0.05, (planned(start)[0], start)


@pytest.mark.parametrize("start", CLOSE, ids=name)
def test_weights_are_within_2_percent_or_a_third_of_a_gib(start: dict[str, Any]) -> None:
    found, shape = planned(start)
    # A vision tower's own embeddings are not in the rough figure.
    allowed = max(0.02 * start["weights_gib"], 0.6 if shape.vision else 0.33)
    assert abs(found.weights_gib - start["weights_gib"]) <= allowed, (found, start)


def test_most_are_much_closer() -> None:
    assert len(CLOSE) >= 35
    assert statistics.median(abs(error(start)) for start in CLOSE) <= 0.003
