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
