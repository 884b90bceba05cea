"""Models of many families: their parameters follow from their configurations, and what cannot be planned is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planner_data import MODELS
from stack_plan import load

flags, shapes = load("flags"), load("shapes")
FAMILIES = json.loads((Path(__file__).parent / "families.json").read_text())
LLAMA = MODELS["Meta-Llama-3.1-8B"]
GEMMA3 = {
    "model_type": "gemma3_text",
    "hidden_size": 2560,
    "num_hidden_layers": 34,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 10240,
    "vocab_size": 262208,
    "sliding_window": 1024,
}


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "_read_me"])
def test_parameters_are_those_on_the_model_s_card(name: str) -> None:
    assert shapes.read_shape(FAMILIES[name]).parameters / 1e9 == pytest.approx(FAMILIES[name]["billions"], rel=0.02)


def test_gemma_3_shares_its_embedding_and_has_a_full_layer_in_six_without_saying_so() -> None:
    shape = shapes.read_shape(GEMMA3)
    assert shape.tied
    assert (shape.kinds.count("full"), shape.kinds.count("sliding")) == (5, 29)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"is_encoder_decoder": True}, "an encoder and a decoder"),
        ({"model_type": "bert"}, "an encoder, which has no KV cache"),
        ({"layer_types": ["full_attention"]}, "lists the kinds of 1 layers and has 32"),
    ],
)
def test_what_cannot_be_planned_is_said(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(flags.PlanError) as raised:
        shapes.read_shape({**LLAMA, **changes})
    assert said in str(raised.value)


def test_a_checkpoint_with_scales_for_it_has_its_cache_in_fp8() -> None:
    memory = load("memory")
    fp8 = shapes.read_shape(
        {**LLAMA, "quantization_config": {"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 8}}}
    )
    plain = shapes.read_shape({**LLAMA, "quantization_config": {"quant_method": "fp8"}})
    assert memory.token_bytes(fp8, flags.Flags(), 1) * 2 == memory.token_bytes(plain, flags.Flags(), 1)
    assert memory.token_bytes(fp8, flags.Flags(kv_cache_dtype="bfloat16"), 1) == memory.token_bytes(
        plain, flags.Flags(), 1
    )


def test_a_method_of_unknown_size_makes_an_estimate() -> None:
    shape = shapes.read_shape({**LLAMA, "quantization_config": {"quant_method": "magic"}})
    assert any("magic" in reason for reason in shape.estimates)


QUANTIZED = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32}}},
}
MOE = MODELS["Qwen3-30B-A3B"]


def bytes_of(**quantization: Any) -> tuple[float, float]:
    shape = shapes.read_shape({**MOE, "quantization_config": {**QUANTIZED, **quantization}})
    return shapes.bytes_per_parameter(shape)


ATTENTION_AND_ROUTER = [f"model.layers.{layer}.{name}" for layer in range(48) for name in ("self_attn", "mlp.gate")]


@pytest.mark.parametrize(
    "left_out",
    [
        {"ignore": ["re:.*self_attn.*", "re:.*mlp.gate$", "lm_head"]},
        {"modules_to_not_convert": ["self_attn", *(f"model.layers.{layer}.mlp.gate" for layer in range(48))]},
        {"exclude_modules": ["*self_attn*", "*mlp.gate", "lm_head"]},
        {"ignored_layers": ATTENTION_AND_ROUTER},
        {"dynamic": {"-:.*self_attn.*": {}, "-:.*mlp\\.gate$": {}}},
    ],
    ids=lambda value: next(iter(value)),
)
def test_modules_that_are_not_quantized_have_two_bytes(left_out: dict[str, Any]) -> None:
    size, expert_size = bytes_of(**left_out)
    # All of a layer but its experts; these have half a byte and a scale.
    assert size == pytest.approx(2.0, abs=0.01)
    assert expert_size == pytest.approx(0.5625, abs=0.01)


@pytest.mark.parametrize(
    "left_out",
    [
        {},
        {"ignore": ["lm_head"]},
        {"ignore": "lm_head"},
        {"ignore": ["re:("]},
        {"ignore": [None, 3]},
        {"dynamic": {"+:.*": {}}},
    ],
)
def test_a_list_without_such_modules_changes_nothing(left_out: dict[str, Any]) -> None:
    assert bytes_of(**left_out) == pytest.approx((0.5625, 0.5625), abs=0.01)


def test_layers_that_are_not_quantized_count_by_their_share() -> None:
    half = [f"model.layers.{layer}" for layer in range(24)]
    assert bytes_of(ignore=half) == pytest.approx(((2 + 0.5625) / 2,) * 2, abs=0.01)


V4 = {
    "model_type": "deepseek_v4",
    "num_hidden_layers": 43,
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "num_key_value_heads": 1,
    "head_dim": 512,
    "vocab_size": 129280,
    "n_routed_experts": 256,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 2048,
    "max_position_embeddings": 1048576,
    "compress_ratios": [0, 0, 4, 128],
    "quantization_config": {"quant_method": "fp8"},
}


@pytest.mark.parametrize(
    ("instance_type", "args", "fits"),
    [
        ("p5en.48xlarge", {"tensor-parallel-size": 8}, None),
        ("p5en.48xlarge", {"tensor-parallel-size": 8, "kv-cache-memory-bytes": "20G"}, True),
        ("p5en.48xlarge", {"tensor-parallel-size": 8, "kv-cache-memory-bytes": "900G"}, False),
        ("g6.xlarge", {}, False),
    ],
)
def test_a_model_with_compressed_caches_has_no_number_of_tokens(
    instance_type: str, args: dict[str, Any], fits: bool | None
) -> None:
    host = load("hosts").host_of_type(instance_type, load("reports").INSTANCES)
    told = load("plans").plan(V4, host, args)
    assert told["fits"] is fits
    assert told["kv_tokens"] is None
    assert told["estimated"]
    assert len(told["why"]) == 4
    assert ("set kv-cache-memory-bytes" in told["why"][3]) == ("kv-cache-memory-bytes" not in args)
    of_host = load("reports").plan_of_host([{"name": "one", "model": "m", "args": args}], host, {"one": V4}, (0, 33))
    assert bool(of_host["problems"]) == (fits is False)
    assert (
        "it cannot be said" in load("reports").text_of_model({"model": "m", "instance_type": "t", **told})
        or fits is not None
    )
