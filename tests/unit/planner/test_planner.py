"""Shapes, options and plans."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_data import MODELS
from stack_plan import load

flags, hosts, memory, plans, reports, shapes = (
    load(name) for name in ("flags", "hosts", "memory", "plans", "reports", "shapes")
)
ROOT = Path(__file__).resolve().parents[3]
LLAMA = MODELS["Meta-Llama-3.1-8B"]
QWEN = MODELS["Qwen3-32B"]


def host(instance_type: str) -> Any:
    return hosts.host_of_type(instance_type, reports.INSTANCES)


def plan(model: str, instance_type: str, wanted: Any = None, **args: Any) -> dict[str, Any]:
    options = {name.replace("_", "-"): value for name, value in args.items()}
    return plans.plan(MODELS[model], host(instance_type), options, wanted or plans.Wanted())  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", [name for name, config in MODELS.items() if "parameters" in config])
def test_parameters_are_those_that_are_published(model: str) -> None:
    config = MODELS[model]
    assert shapes.read_shape(config).parameters == pytest.approx(config["parameters"], rel=0.002)


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, {"full": 32}),
        ({"sliding_window": 4096}, {"sliding": 32}),
        ({"sliding_window": 4096, "use_sliding_window": False}, {"full": 32}),
        ({"sliding_window": 1024, "sliding_window_pattern": 4}, {"full": 8, "sliding": 24}),
        ({"layer_types": ["linear_attention", "full_attention"] * 16}, {"full": 16, "linear": 16}),
        ({"attn_layer_period": 8, "attn_layer_offset": 4}, {"full": 4, "linear": 28}),
        ({"hybrid_override_pattern": "M-M-M*-M-M*-"}, {"linear": 5, "full": 2}),
    ],
)
def test_kinds_of_layers(changes: dict[str, Any], kinds: dict[str, int]) -> None:
    found = shapes.read_shape({**LLAMA, **changes}).kinds
    assert {kind: found.count(kind) for kind in set(found)} == kinds


@pytest.mark.parametrize(
    ("quantization", "size"),
    [
        ({"quant_method": "fp8"}, 1.0),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 0.51953125),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 0.515625),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"weights": {"num_bits": 4, "group_size": 128}}},
            },
            0.515625,
        ),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 8}}}}, 1.0),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}, 0.5625),
        ({}, 2.0),
    ],
)
def test_bytes_of_a_parameter(quantization: dict[str, Any], size: float) -> None:
    assert shapes.bytes_per_parameter(shapes.read_shape({**LLAMA, "quantization_config": quantization}))[0] == size


def test_only_experts_are_mxfp4() -> None:
    assert shapes.bytes_per_parameter(shapes.read_shape(MODELS["gpt-oss-20b"])) == (
        2.0,
        pytest.approx(0.5631, abs=0.001),
    )


def test_all_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(flags.PlanError) as raised:
        shapes.read_shape({"vocab_size": 10})
    assert [problem.split()[3].rstrip(",") for problem in raised.value.problems] == [
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
    ]


def test_options_are_read_in_both_spellings_and_with_units() -> None:
    read = flags.read_flags(
        {"max_model_len": "8K", "max-num-seqs": "1k", "enforce_eager": True, "a-flag-of-its-own": [1]}
    )
    assert (read.max_model_len, read.max_num_seqs, read.enforce_eager) == (8192, 1000, True)
    assert flags.read_flags({"max-model-len": -1}).max_model_len is None
    assert flags.read_flags({"limit-mm-per-prompt": {"image": 0}}).no_media


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"max-model-len": 0}, "max-model-len is 0"),
        ({"max-model-len": 1.5}, "max-model-len is 1.5"),
        ({"max-num-seqs": True}, "max-num-seqs is True"),
        ({"max-num-seqs": "9" * 4300}, "max-num-seqs is '999"),
        ({"gpu-memory-utilization": 1.1}, "gpu-memory-utilization is 1.1"),
        ({"gpu-memory-utilization": "nan"}, "gpu-memory-utilization is 'nan'"),
        ({"kv-cache-dtype": "int3"}, "kv-cache-dtype is 'int3'"),
        ({"enforce-eager": "perhaps"}, "enforce-eager is 'perhaps'"),
    ],
)
def test_an_option_that_makes_no_sense(args: dict[str, Any], said: str) -> None:
    with pytest.raises(flags.PlanError) as raised:
        flags.read_flags({**args, "dtype": "wrong"})
    assert any(problem.startswith(said) for problem in raised.value.problems)
    assert len(raised.value.problems) == 2


def test_pipeline_stages_are_divided_as_vllm_does() -> None:
    assert memory.stages(32, 4) == [8, 8, 8, 8]
    assert memory.stages(126, 4) == [31, 32, 32, 31]
    assert memory.stages(5, 3) == [1, 2, 2] or memory.stages(5, 3) == [2, 2, 1]


def test_what_an_operator_wants_decides_about_gpus() -> None:
    small = plan("Qwen3-32B", "g6e.12xlarge", plans.Wanted(8192, 1))
    large = plan("Qwen3-32B", "g6e.12xlarge", plans.Wanted(8192, 40))
    assert small["fits"]
    assert large["fits"]
    assert small["gpus"] < large["gpus"]
    assert large["kv_tokens"] >= 8192 * 40
    assert small["flags"]["max-model-len"] == 8192


def test_options_that_are_given_win() -> None:
    told = plan(
        "Meta-Llama-3.1-8B", "p5.48xlarge", tensor_parallel_size=4, max_model_len="16K", gpu_memory_utilization=0.5
    )
    assert told["gpus"] == 4
    assert told["flags"]["max-model-len"] == "16K"
    assert told["flags"]["gpu-memory-utilization"] == 0.5


def test_a_model_that_does_not_fit_is_explained_in_four_lines_with_what_would_do() -> None:
    told = plan("Qwen3-32B", "g6e.2xlarge", max_model_len=8192)
    assert not told["fits"]
    assert len(told["why"]) == 4
    assert "weights: 61" in told["why"][1]
    assert any("fp8" in change for change in told["changes"])
    assert plan("Qwen3-32B", "g6e.2xlarge", max_model_len=8192, quantization="fp8")["fits"]


def test_each_change_that_is_proposed_would_do() -> None:
    told = plan("Qwen3-8B", "g6.xlarge", max_model_len=40960, max_num_seqs=256)
    assert not told["fits"]
    lengths = [change for change in told["changes"] if change.startswith("a shorter context")]
    (length,) = [int(change.split()[4]) for change in lengths]
    assert plan("Qwen3-8B", "g6.xlarge", max_model_len=length, max_num_seqs=256)["fits"]
    assert plan("Qwen3-8B", "g6.xlarge", max_model_len=40960, max_num_seqs=256, kv_cache_dtype="fp8")["fits"]
    assert any("kv-cache-dtype fp8" in change for change in told["changes"])


def test_cards_before_ampere_have_no_bfloat16_and_those_before_turing_no_vllm() -> None:
    assert plan("Qwen2.5-7B-Instruct-AWQ", "g4dn.xlarge")["flags"]["dtype"] == "half"
    refused = plan("Qwen3-0.6B", "p3dn.24xlarge")
    assert not refused["fits"]
    assert "compute capability 7" in refused["why"][0]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"tensor_parallel_size": 3}, "does not divide the model's 32 attention heads"),
        ({"tensor_parallel_size": 8}, "needs 8 GPUs, and g6.12xlarge has 4"),
        ({"pipeline_parallel_size": 64}, "the model has 32 layers"),
    ],
)
def test_parallel_sizes_that_cannot_be(args: dict[str, Any], said: str) -> None:
    with pytest.raises(flags.PlanError) as raised:
        plan("Meta-Llama-3.1-8B", "g6.12xlarge", **args)
    assert said in str(raised.value)


def test_a_model_with_latent_attention_has_one_cache_on_each_gpu() -> None:
    shape = shapes.read_shape(MODELS["DeepSeek-V3"])
    assert memory.token_bytes(shape, flags.Flags(), 8) == memory.token_bytes(shape, flags.Flags(), 1) == 2 * (512 + 64)


def test_fewer_kv_heads_than_gpus_are_repeated() -> None:
    shape = shapes.read_shape(MODELS["Qwen3-235B-A22B"])
    assert memory.token_bytes(shape, flags.Flags(), 8) == memory.token_bytes(shape, flags.Flags(), 4)


def test_adapters_need_room() -> None:
    without = plan("Meta-Llama-3.1-8B", "g6e.xlarge", tensor_parallel_size=1)
    with_adapters = plan(
        "Meta-Llama-3.1-8B", "g6e.xlarge", tensor_parallel_size=1, enable_lora=True, max_loras=8, max_lora_rank=64
    )
    assert without["kv_tokens"] - with_adapters["kv_tokens"] > 5000


def test_types_that_fit_are_listed_the_cheapest_first() -> None:
    found = list(plans.fitting_hosts(QWEN, hosts.all_hosts(reports.INSTANCES), {}, plans.Wanted(8192, 2)))
    prices = [row["usd_per_hour"] for row in found if row["usd_per_hour"] is not None]
    assert prices == sorted(prices)
    assert "g6.xlarge" not in [row["instance_type"] for row in found]
    assert "p5.48xlarge" in [row["instance_type"] for row in found]


def test_the_cheapest_type_that_fits_is_named() -> None:
    told = reports.plan_with_types(LLAMA, host("g4dn.xlarge"), {}, plans.Wanted())
    assert told["changes"][-1] == "another instance type: g6.xlarge is the cheapest that fits (0.80 USD/hour)"
    everywhere = reports.plan_with_types(LLAMA, host("g4dn.xlarge"), {}, plans.Wanted(40960, 10**6))
    assert everywhere["changes"][-1] == "more than one host: no single instance type fits it"


def test_more_gpus_of_the_host_are_named_where_they_would_do() -> None:
    told = reports.plan_with_types(QWEN, host("g6.12xlarge"), {}, plans.Wanted(), gpus=1)
    assert "more GPUs: 4 of the host's 4 instead of 1" in told["changes"]


def test_a_card_that_vllm_cannot_use_has_a_type_that_it_can() -> None:
    told = reports.plan_with_types(LLAMA, host("g4dn.12xlarge"), {"dtype": "bfloat16"}, plans.Wanted())
    assert told["changes"] == ["another instance type: g6.xlarge is the cheapest that fits (0.80 USD/hour)"]


TYPES = [name for name in reports.INSTANCES if not name.startswith("_")]
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.sampled_from(["", "8K", "-1", "nan", "1e400", "fp8", "\x00", "9" * 5000]),
    st.lists(st.integers(), max_size=3),
    st.just({"factor": 1e300}),
)


@settings(deadline=None)  # on a busy machine a plan takes longer
@given(
    st.sampled_from(sorted(MODELS)),
    st.dictionaries(st.sampled_from([*sorted(LLAMA), "sliding_window", "num_experts", "kv_lora_rank"]), ANYTHING),
    st.sampled_from(TYPES),
)
def test_any_configuration_gives_a_plan_or_says_what_is_wrong(
    model: str, changes: dict[str, Any], instance_type: str
) -> None:
    with contextlib.suppress(flags.PlanError):
        told = plans.plan({**MODELS[model], **changes}, host(instance_type))
        assert told["kv_tokens"] >= 0
        json.dumps(told, allow_nan=False)


@settings(deadline=None)  # on a busy machine a plan takes longer
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "max-model-len",
                "max-num-seqs",
                "tensor-parallel-size",
                "gpu-memory-utilization",
                "dtype",
                "limit-mm-per-prompt",
            ]
        ),
        ANYTHING,
    )
)
def test_any_options_give_a_plan_or_say_what_is_wrong(args: dict[str, Any]) -> None:
    with contextlib.suppress(flags.PlanError):
        assert plans.plan(LLAMA, host("g6.12xlarge"), args)["kv_tokens"] >= 0


@settings(deadline=None)  # on a busy machine a plan takes longer
@given(
    st.sampled_from(sorted(MODELS)),
    st.sampled_from([64, 256, 1024]),
    st.sampled_from([0.5, 0.8, 0.95]),
    st.sampled_from([2048, 8192]),
)
def test_more_memory_and_fewer_sequences_never_give_fewer_tokens(
    model: str, sequences: int, share: float, length: int
) -> None:
    shape, card = shapes.read_shape(MODELS[model]), host("p5.48xlarge").card

    def tokens(count: int, utilization: float) -> int:
        layout = memory.Layout(8, 1, count, 8192, utilization, (0, 33))
        return memory.budget(shape, card, flags.Flags(), layout, length).kv_tokens  # type: ignore[no-any-return]

    assert tokens(sequences, share) >= tokens(sequences * 2, share)
    assert tokens(sequences, share) <= tokens(sequences, min(1.0, share + 0.05))


def run(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """playbooks/plan.yml without an inventory and without credentials."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    command = [
        Path(sys.executable).parent / "ansible-playbook",
        "playbooks/plan.yml",
        "-e",
        f"plan_model={tmp_path}",
        *options,
    ]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment | {"ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_playbook_needs_no_inventory_and_prints_one_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    done = run(
        tmp_path,
        "-e",
        "plan_instance_type=g6e.xlarge",
        "-e",
        '{"plan_args": {"max-model-len": 8192}}',
        "-e",
        "plan_format=json",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    told = json.loads(line)
    assert told["fits"] is True
    assert told["kv_tokens"] == plan("Meta-Llama-3.1-8B", "g6e.xlarge", max_model_len=8192)["kv_tokens"]
    assert {"weights_gib", "kv_gib", "flags", "estimated", "why"} <= told.keys()


def test_the_playbook_says_what_is_wrong(tmp_path: Path) -> None:
    done = run(tmp_path, "-e", "plan_instance_type=g6e.xlarge")
    assert done.returncode != 0
    assert "has no config.json" in done.stdout + done.stderr
