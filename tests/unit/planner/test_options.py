"""Options as operators write them, and those that no GPU of a host can follow."""

from __future__ import annotations

from typing import Any

import pytest
from planner_data import MODELS
from stack_plan import load

flags, hosts, plans, reports = load("flags"), load("hosts"), load("plans"), load("reports")


def plan(model: str, instance_type: str, **args: Any) -> dict[str, Any]:
    options = {name.replace("_", "-"): value for name, value in args.items()}
    return plans.plan(MODELS[model], hosts.host_of_type(instance_type, reports.INSTANCES), options)  # type: ignore[no-any-return]


def test_short_names_and_negations_are_those_of_the_long_ones() -> None:
    read = flags.read_flags({"tp": 4, "pp": 2, "no-enable-lora": None, "enforce-eager": None})
    assert (read.tensor_parallel, read.pipeline_parallel, read.enable_lora, read.enforce_eager) == (4, 2, False, True)


def test_media_may_be_forbidden_in_json() -> None:
    assert flags.read_flags({"limit-mm-per-prompt": '{"image": 0}'}).no_media
    assert not flags.read_flags({"limit-mm-per-prompt": '{"image": 1}'}).no_media


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([1], "the options are [1]"),
        ({"max-model-len": 8192, "max_model_len": 16384}, "max-model-len is given twice, as 8192 and 16384"),
        ({"limit-mm-per-prompt": "{"}, "limit-mm-per-prompt is '{'"),
    ],
)
def test_options_that_cannot_be_read(args: Any, said: str) -> None:
    with pytest.raises(flags.PlanError) as raised:
        flags.read_flags(args)
    assert said in str(raised.value)


def test_a_t4_refuses_bfloat16_and_gets_half_where_nothing_is_said() -> None:
    refused = plan("Qwen3-0.6B", "g4dn.xlarge", dtype="bfloat16")
    assert not refused["fits"]
    assert "has no bfloat16" in refused["why"][0]
    assert plan("Qwen3-0.6B", "g4dn.xlarge")["flags"]["dtype"] == "half"


def test_an_engine_over_several_hosts_has_the_gpus_of_all() -> None:
    told = plan("Meta-Llama-3.1-405B", "p5.48xlarge", tensor_parallel_size=8, pipeline_parallel_size=2, nnodes=2)
    assert told["fits"]
    with pytest.raises(plans.LayoutError, match="needs 16 GPUs"):
        plan("Meta-Llama-3.1-405B", "p5.48xlarge", tensor_parallel_size=8, pipeline_parallel_size=2)


def test_a_size_of_the_cache_that_the_card_has_not_does_not_fit() -> None:
    assert plan("Qwen3-8B", "g5.xlarge", kv_cache_memory_bytes="2G", max_model_len=8192)["kv_gib"] == 2.0
    assert not plan("Qwen3-8B", "g5.xlarge", kv_cache_memory_bytes="20G", max_model_len=8192)["fits"]


def test_a_method_of_checkpoints_needs_one() -> None:
    with pytest.raises(flags.PlanError, match="quantization is awq, but the model's weights are not"):
        plan("Qwen3-8B", "g5.xlarge", quantization="awq")
    assert plan("Qwen2.5-7B-Instruct-AWQ", "g5.xlarge", quantization="awq")["fits"]


def test_32_bits_take_twice_the_memory() -> None:
    half, whole = (plan("Qwen3-8B", "g6e.xlarge", dtype=dtype, max_model_len=4096) for dtype in ("auto", "float32"))
    assert whole["weights_gib"] == pytest.approx(2 * half["weights_gib"], rel=0.02)
    assert whole["kv_tokens"] < half["kv_tokens"] / 2
