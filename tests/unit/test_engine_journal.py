"""What is read from an engine's journal. The lines are vLLM 0.32's own."""

from __future__ import annotations

import engine_journal
import pytest

EARLIER = """\
Starting vllm@x.service - vLLM engine x...
(APIServer pid=10) ValueError: of an earlier run
Started vllm@x.service - vLLM engine x.
"""
BEGIN = """\
Starting vllm@x.service - vLLM engine x...
Started vllm@x.service - vLLM engine x.
"""
NEXT = "vllm@x.service: Scheduled restart job, restart counter is at 1.\nStarting vllm@x.service - vLLM engine x...\n"
CORE = """\
(EngineCore pid=12) ERROR 11-26 17:40:01 [core.py:1200] EngineCore failed to start.
(EngineCore pid=12) ERROR 11-26 17:40:01 [core.py:1200] Traceback (most recent call last):
(EngineCore pid=12) ERROR 11-26 17:40:01 [core.py:1200]   File "/opt/x.py", line 3, in load
(EngineCore pid=12) ERROR 11-26 17:40:01 [core.py:1200]     raise ValueError("no weights")
(EngineCore pid=12) ERROR 11-26 17:40:01 [core.py:1200] ValueError: no weights
(APIServer pid=10) Traceback (most recent call last):
(APIServer pid=10) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
WORKER = """\
(Worker pid=13) ERROR 11-26 17:40:01 [multiproc_executor.py:700] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.
(EngineCore pid=12) ERROR 11-26 17:40:02 [core.py:1200] Exception: WorkerProc initialization failed due to an exception in a \
background process. See stack trace for root cause.
(APIServer pid=10) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
CONFIG = """\
(APIServer pid=10) pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig
(APIServer pid=10)   Value error, max_model_len (9999) is greater than 2048. [type=value_error]
(APIServer pid=10)     For further information visit https://errors.pydantic.dev
vllm@x.service: Main process exited, code=exited, status=1/FAILURE
"""


@pytest.mark.parametrize(
    ("run", "error"),
    [
        (CORE, "ValueError: no weights"),
        (WORKER, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."),
        (
            CONFIG,
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig Value error, max_model_len (9999) is "
            "greater than 2048. [type=value_error] For further information visit https://errors.pydantic.dev",
        ),
        (
            "vllm serve: error: argument --dtype: invalid choice: 'x'\n",
            "vllm serve: error: argument --dtype: invalid choice: 'x'",
        ),
        ("INFO 11-26 17:40:01 [x.py:1] all is well; no ValueError: here\n", None),
    ],
    ids=["core", "worker", "config", "option", "none"],
)
def test_the_engine_s_own_error_is_the_first_one_s_of_its_last_run(run: str, error: str | None) -> None:
    assert engine_journal.last_error(EARLIER + BEGIN + run) == error
    assert engine_journal.last_error(EARLIER + BEGIN + run + NEXT) == error


def test_the_phases_of_the_last_start() -> None:
    start = """\
(Worker_TP0 pid=13) INFO 11-26 17:40:01 [default_loader.py:502] Loading weights took 12.34 seconds
(Worker_TP1 pid=14) INFO 11-26 17:40:01 [default_loader.py:502] Loading weights took 13.00 seconds
(Worker_TP0 pid=13) INFO 11-26 17:40:41 [monitor.py:60] torch.compile took 40.00 s in total
(Worker_TP0 pid=13) INFO 11-26 17:40:50 [gpu_model_runner.py:6582] Graph capturing finished in 9 secs, took 1.20 GiB
(EngineCore pid=12) INFO 11-26 17:41:00 [core.py:392] init engine (profile, create kv cache, warmup model) took 59.50 s \
(compilation: 40.00 s)
"""
    before = BEGIN + "INFO 11-26 16:00:00 [x.py:1] Loading weights took 99 seconds\n"
    assert engine_journal.phases_s(before + BEGIN + start) == {
        "weights": 13.0,
        "initialization": 59.5,
        "of it compilation": 40.0,
        "of it CUDA graphs": 9.0,
    }
    assert engine_journal.phases_s("") == {}


KV_0_20 = """\
(Worker_TP0 pid=13) INFO 11-26 17:40:41 [gpu_worker.py:440] Available KV cache memory: 13.84 GiB
(EngineCore pid=12) INFO 11-26 17:40:42 [kv_cache_utils.py:1316] GPU KV cache size: 151,216 tokens
"""
KV_0_32 = """\
(EngineCore_DP0 pid=12) INFO 11-26 17:40:42 [kv_cache_utils.py:2328] GPU KV cache size: 2,048 tokens, Maximum concurrency for 1,024 \
tokens per request: 2.00x
(EngineCore_DP1 pid=13) INFO 11-26 17:40:42 [kv_cache_utils.py:2328] GPU KV cache size: 1,024 tokens, Maximum concurrency for 1,024 \
tokens per request: 1.00x
"""


@pytest.mark.parametrize(
    ("run", "kv_cache"),
    [(KV_0_20, (151_216, 13.84)), (KV_0_32, (1024, None)), (CORE, None)],
    ids=["0.20", "0.32", "none"],
)
def test_the_kv_cache_of_the_last_start(run: str, kv_cache: tuple[int, float | None] | None) -> None:
    before = BEGIN + "INFO 11-26 16:00:00 [x.py:1] GPU KV cache size: 7 tokens\n"
    assert engine_journal.kv_cache(before + BEGIN + run) == kv_cache
