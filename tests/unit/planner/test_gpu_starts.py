"""What tools/gpu_starts makes of the journal of a start: a line that the planner's test reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import observed
import yaml
from planner_data import MODELS, STARTS

TOOL = Path(observed.__file__).parent
# vLLM 0.32's lines.
JOURNAL = """\
Starting vllm@dense-64.service - vLLM engine dense-64...
(EngineCore pid=9) INFO 11-26 20:00:00 [kv_cache_utils.py:2327] GPU KV cache size: 7 tokens, Maximum concurrency for 7 tokens per request: 1.00x
Starting vllm@dense-64.service - vLLM engine dense-64...
(APIServer pid=10) INFO 11-26 21:20:01 [utils.py:300] vLLM API server version 0.33.0
(EngineCore pid=12) INFO 11-26 21:20:03 [gpu_model_runner.py:4100] Model loading took 14.99 GiB memory and 1.2 seconds
(EngineCore pid=12) INFO 11-26 21:20:04 [gpu_worker.py:440] Available KV cache memory: 54.32 GiB
(EngineCore pid=12) INFO 11-26 21:20:05 [kv_cache_utils.py:2327] GPU KV cache size: 444,992 tokens, Maximum concurrency for 8,192 tokens \
per request: 54.32x
"""
START: dict[str, Any] = {
    "name": "dense-64",
    "shape": "meta-llama/Meta-Llama-3.1-8B",
    "args": {"max-num-seqs": 64, "max-model-len": 8192},
}


def test_a_start_becomes_a_line_of_the_planner_s_test() -> None:
    line = observed.observed(START, ["NVIDIA H100 80GB HBM3", 79.18], JOURNAL)
    assert line.keys() == STARTS[0].keys()
    assert line["model"] in MODELS
    logged = ("vllm", "weights_gib", "available_kv_gib", "kv_tokens", "max_concurrency", "gpu_total_gib")
    assert [line[name] for name in logged] == ["0.33.0", 14.99, 54.32, 444992, 54.32, 79.18]
    json.dumps(line)


def test_what_was_not_logged_is_missing() -> None:
    assert observed.observed(START, ["none", None], "")["kv_tokens"] is None


def test_the_starts_are_of_models_that_the_tests_have() -> None:
    (play,) = yaml.safe_load((TOOL / "playbook.yml").read_text())
    models = json.loads((TOOL.parents[1] / "tests/unit/planner/models.json").read_text())
    starts = play["vars"]["gpu_starts"]
    assert [start["args"]["max-num-seqs"] for start in starts] == [1024, 256, 64, 256]
    assert [start["shape"] for start in starts if start["shape"] not in models] == []
