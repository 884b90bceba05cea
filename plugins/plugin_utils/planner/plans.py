"""The plan of an engine on a host: how it is divided among the GPUs, which options vLLM gets, and why it does not fit if it does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .flags import Flags, PlanError, by_name, read_flags
from .hosts import Host
from .memory import Budget, Layout, budget
from .shapes import OF_CHECKPOINTS, Shape, bytes_per_parameter, read_shape

# vLLM's own default since 0.30.
UTILIZATION = 0.92
VERSION = (0, 33)
# GPUs that vLLM's wheels have code for; those below the second have no bfloat16.
_LEAST_CAPABILITY, _BFLOAT16_CAPABILITY = 7.5, 8.0
# Tokens of KV cache that an engine should have if the operator does not say, and the smallest useful number.
_USUAL_TOKENS, _LEAST_TOKENS = 32768, 2048
# Numbers of sequences to try if the default leaves too little for the KV cache.
_SEQUENCES = (256, 128, 64, 32, 16)


@dataclass(frozen=True)
class Wanted:
    """What an operator wants: tokens of one request, and how many such requests at once. None: as much as fits."""

    context_tokens: int | None = None
    concurrency: int | None = None

    def tokens(self, length: int) -> int:
        """The tokens that the KV cache has to keep."""
        return length * (self.concurrency or 1)


@dataclass(frozen=True)
class Plan:
    """An engine on a host. Memory is that of the tightest GPU, tokens those of the whole engine."""

    host: Host
    shape: Shape
    layout: Layout
    budget: Budget
    length: int
    fits: bool


def plan(
    config: Mapping[str, Any],
    host: Host,
    args: Mapping[str, Any] | None = None,
    wanted: Wanted = Wanted(),
    weights_bytes: int | None = None,
    gpus: int | None = None,
    version: tuple[int, int] = VERSION,
) -> dict[str, Any]:
    """The plan of one engine as a dictionary, as docs/planner.md describes it. Raises PlanError for input that makes no sense.

    `weights_bytes` are the sizes of the model's files, if known; `gpus` bounds how many it may use.
    """
    shape, flags = read_shape(config), read_flags(args or {})
    if flags.quantization in OF_CHECKPOINTS and not shape.quantization:
        raise PlanError(
            [
                f"quantization is {flags.quantization}, but the model's weights are not: name a checkpoint in it, or leave the option out"
            ]
        )
    text = _unable(host, flags)
    if text:
        return {
            "fits": False,
            "weights_gib": None,
            "kv_gib": None,
            "kv_tokens": 0,
            "flags": {},
            "estimated": False,
            "why": [text],
            "changes": [],
        }
    chosen = _choose(shape, host, flags, wanted, weights_bytes, min(gpus or host.gpus, host.gpus), version)
    return _told(chosen, flags, wanted, weights_bytes, args or {})


def _unable(host: Host, flags: Flags) -> str:
    """Why the host's GPUs cannot run the engine at all, whatever its size; empty if they can."""
    card = host.card
    if card.compute_capability < _LEAST_CAPABILITY:
        return f"{card.name} has compute capability {card.compute_capability:g}, and vLLM needs {_LEAST_CAPABILITY}"
    if card.compute_capability < _BFLOAT16_CAPABILITY and flags.dtype == "bfloat16":
        return f"{card.name} (compute capability {card.compute_capability:g}) has no bfloat16: set dtype to half, or leave it out"
    return ""


def fitting_hosts(
    config: Mapping[str, Any],
    hosts: list[Host],
    args: Mapping[str, Any] | None = None,
    wanted: Wanted = Wanted(),
    weights_bytes: int | None = None,
    version: tuple[int, int] = VERSION,
) -> Iterator[dict[str, Any]]:
    """The plans on those hosts that the engine fits on, in their order."""
    for host in hosts:
        try:
            told = plan(config, host, args, wanted, weights_bytes, version=version)
        except LayoutError:
            continue  # this host has too few GPUs for the parallel sizes that were given
        if told["fits"] is not False:
            yield {"instance_type": host.name, "usd_per_hour": host.usd_per_hour, **told}


class LayoutError(PlanError):
    """The parallel sizes do not suit the model or the host."""


def _choose(
    shape: Shape,
    host: Host,
    flags: Flags,
    wanted: Wanted,
    weights_bytes: int | None,
    gpus: int,
    version: tuple[int, int],
) -> Plan:
    """The first plan with enough tokens; else, if no length is wanted, the one with the most; else the one with the most room."""
    length = flags.max_model_len or wanted.context_tokens
    plans = [
        _plan_of(shape, host, flags, layout, wanted, length, weights_bytes)
        for layout in _layouts(shape, host, flags, wanted, gpus, version)
    ]
    enough = wanted.tokens(length) if length else _USUAL_TOKENS
    usual = [found for found in plans if found.layout.max_num_seqs == plans[0].layout.max_num_seqs]
    for some in (usual, plans):
        fitting = [found for found in some if found.fits]
        ample = next((found for found in fitting if found.budget.kv_tokens >= enough), None)
        if ample or fitting:
            return ample or max(fitting, key=lambda found: found.budget.kv_tokens)
    return max(plans, key=lambda found: found.budget.kv_gib)


def _layouts(
    shape: Shape, host: Host, flags: Flags, wanted: Wanted, gpus: int, version: tuple[int, int]
) -> Iterator[Layout]:
    """The ways to divide the engine, the fewest GPUs first; for each, vLLM's number of sequences first, then fewer."""
    usual = host.card.default_seqs
    fewer = [count for count in _SEQUENCES if (wanted.concurrency or 1) <= count < usual]
    batched = flags.max_num_batched_tokens or host.card.default_batched_tokens
    for tensor, pipeline in _divisions(shape, host, flags, gpus):
        for count in [flags.max_num_seqs] if flags.max_num_seqs else [usual, *fewer]:
            yield Layout(tensor, pipeline, count, batched, flags.gpu_memory_utilization or UTILIZATION, version)


def _divisions(shape: Shape, host: Host, flags: Flags, gpus: int) -> list[tuple[int, int]]:
    """Pairs of tensor and pipeline parallel sizes. Without NVLink pipelines come first: they send less between GPUs."""
    if flags.tensor_parallel or flags.pipeline_parallel:
        pair = (flags.tensor_parallel or 1, flags.pipeline_parallel or 1)
        problems = _unsuitable(shape, *pair)
        needed = pair[0] * pair[1] * flags.data_parallel
        if needed > gpus * flags.nodes:
            hosts = (
                f"{flags.nodes} hosts {host.name} have {gpus * flags.nodes}"
                if flags.nodes > 1
                else f"{host.name} has {gpus}"
            )
            problems.append(f"the engine needs {needed} GPUs, and {hosts} for it")
        if problems:
            raise LayoutError(problems)
        return [pair]
    counts = [count for count in (1, 2, 4, 8, 16) if count * flags.data_parallel <= gpus]
    if not counts:
        raise LayoutError([f"data-parallel-size is {flags.data_parallel}, and {host.name} has {gpus} GPUs for it"])
    pairs = [
        pair
        for count in counts
        for pair in ([(count, 1)] if host.card.nvlink or count == 1 else [(1, count), (count, 1)])
    ]
    return [pair for pair in pairs if not _unsuitable(shape, *pair)] or [(1, 1)]


def _unsuitable(shape: Shape, tensor: int, pipeline: int) -> list[str]:
    """Why the model cannot be divided like that."""
    problems = []
    if shape.heads % tensor:
        problems.append(
            f"tensor-parallel-size is {tensor}, which does not divide the model's {shape.heads} attention heads"
        )
    elif not shape.mla_dim and shape.kv_heads % tensor and tensor % shape.kv_heads:
        problems.append(
            f"tensor-parallel-size is {tensor}, and the model has {shape.kv_heads} KV heads: one has to divide the other"
        )
    if pipeline > shape.layers:
        problems.append(f"pipeline-parallel-size is {pipeline}, and the model has {shape.layers} layers")
    return problems


def _plan_of(
    shape: Shape,
    host: Host,
    flags: Flags,
    layout: Layout,
    wanted: Wanted,
    length: int | None,
    weights_bytes: int | None,
) -> Plan:
    """The engine with one layout: with the length that is wanted, or with the longest that fits."""

    def at(tokens: int) -> Budget:
        return budget(shape, host.card, flags, layout, tokens, weights_bytes)

    if length:
        found = at(length)
        return Plan(host, shape, layout, found, length, found.kv_tokens >= wanted.tokens(length))
    longest = _longest(at, shape.context, wanted)
    if not longest:
        return Plan(host, shape, layout, at(shape.context), shape.context, False)
    return Plan(host, shape, layout, at(longest), longest, longest >= min(_LEAST_TOKENS, shape.context))


def _longest(at: Any, context: int, wanted: Wanted) -> int:
    """The longest request, up to the model's context, of which as many as wanted fit; 0 if none does."""
    low, high = 0, context
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if at(middle).kv_tokens >= wanted.tokens(middle) else (low, middle - 1)
    # Whole steps of 256 tokens read better, and leave a little room.
    return low if low == context else low // 256 * 256


def _told(
    chosen: Plan, flags: Flags, wanted: Wanted, weights_bytes: int | None, args: Mapping[str, Any]
) -> dict[str, Any]:
    """The plan in numbers and words."""
    shape, layout, host = chosen.shape, chosen.layout, chosen.host
    estimates = [*shape.estimates]
    if not host.card.exact:
        estimates.append(f"the memory that PyTorch sees of a {host.card.name} is not published")
    half = host.card.compute_capability < _BFLOAT16_CAPABILITY and flags.dtype == "auto"
    derived = {
        "tensor-parallel-size": layout.tensor,
        "pipeline-parallel-size": layout.pipeline,
        "max-model-len": chosen.length,
        "max-num-seqs": layout.max_num_seqs,
        "max-num-batched-tokens": layout.max_num_batched_tokens,
        "gpu-memory-utilization": layout.utilization,
        **({"dtype": "half"} if half else {}),
    }
    given = by_name(args, [])
    requests = chosen.budget.kv_tokens / chosen.length
    told = {
        "fits": chosen.fits,
        "weights_gib": round(chosen.budget.weights_gib, 2),
        "kv_gib": round(chosen.budget.kv_gib, 2),
        "kv_tokens": chosen.budget.kv_tokens,
        "gpus": layout.tensor * layout.pipeline * flags.data_parallel,
        "needed_tokens": wanted.tokens(chosen.length),
        "requests": round(requests, 2),
        "binds": "max-num-seqs" if requests > layout.max_num_seqs else "KV cache",
        "flags": derived | given if chosen.fits else given,
        "estimated": bool(estimates),
        "estimated_because": estimates,
        "why": _arithmetic(chosen, flags, weights_bytes),
        "changes": [] if chosen.fits else list(_changes(chosen, flags, wanted, weights_bytes)),
    }
    return told | _unknown(chosen, flags, told, given) if shape.compressed_cache else told


def _unknown(chosen: Plan, flags: Flags, told: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is said instead where the memory is known and the tokens are not: whether it fits only if the operator gives the cache's memory."""
    gib, asked = chosen.budget.kv_gib, flags.kv_cache_memory_bytes
    fits = False if gib <= 0 else (True if asked else None)
    sizes = {"tensor-parallel-size": chosen.layout.tensor, "pipeline-parallel-size": chosen.layout.pipeline}
    left = f"left for the KV cache: {gib:.2f} GiB, and how many tokens that is, is not known"
    ask = "" if asked else "; set kv-cache-memory-bytes to what vLLM logs at its first start"
    return {
        "fits": fits,
        "kv_tokens": None,
        "needed_tokens": None,
        "requests": None,
        "flags": given if fits is False else {**sizes, **given},
        "why": [*told["why"][:3], left + ask],
        "changes": told["changes"] if fits is False else [],
    }


def _arithmetic(chosen: Plan, flags: Flags, weights_bytes: int | None) -> list[str]:
    """The arithmetic of the tightest GPU in four lines."""
    shape, layout, found = chosen.shape, chosen.layout, chosen.budget
    size = bytes_per_parameter(shape, flags.quantization)[1 if shape.experts else 0]
    divided = f", divided by TP {layout.tensor} and PP {layout.pipeline}" if layout.tensor * layout.pipeline > 1 else ""
    source = (
        "by the size of its files"
        if weights_bytes
        else f"{shape.parameters / 1e9:.1f} billion parameters, most of {size:.2f} bytes"
    )
    besides = found.activations_gib + found.communication_gib + found.graphs_gib
    need = f"one request of {chosen.length} tokens takes {found.request_gib:.2f} GiB"
    return [
        f"each GPU ({chosen.host.card.name}): {layout.utilization:g} of {found.total_gib:.2f} GiB is {layout.utilization * found.total_gib:.2f} GiB",
        f"weights: {found.weights_gib:.2f} GiB ({source}{divided})",
        f"besides: {besides:.2f} GiB (activations for {layout.max_num_seqs} sequences {found.activations_gib:.2f}, communication "
        f"{found.communication_gib:.2f}, CUDA graphs {found.graphs_gib:.2f})",
        f"left for the KV cache: {found.kv_gib:.2f} GiB, which is {found.kv_tokens} tokens; {need}",
    ]


def _changes(chosen: Plan, flags: Flags, wanted: Wanted, weights_bytes: int | None) -> Iterator[str]:
    """The smallest changes with which it would fit, each by itself."""
    shape, host, layout = chosen.shape, chosen.host, chosen.layout

    def fits(new: Layout = layout, changed: Flags = flags, tokens: int = chosen.length) -> bool:
        found = budget(shape, host.card, changed, new, tokens, weights_bytes)
        return found.kv_tokens >= wanted.tokens(tokens)

    for count in _SEQUENCES:
        if count < layout.max_num_seqs and fits(replace(layout, max_num_seqs=count)):
            yield f"fewer sequences: max-num-seqs {count} instead of {layout.max_num_seqs}"
            break
    shorter = _longest(
        lambda tokens: budget(shape, host.card, flags, layout, tokens, weights_bytes), chosen.length, wanted
    )
    if shorter >= _LEAST_TOKENS:
        yield f"a shorter context: max-model-len {shorter} instead of {chosen.length}"
    if wanted.concurrency and chosen.budget.kv_tokens >= chosen.length:
        yield f"fewer requests at once: {chosen.budget.kv_tokens // chosen.length} instead of {wanted.concurrency}"
    if flags.kv_cache_dtype == "auto" and fits(changed=replace(flags, kv_cache_dtype="fp8")):
        yield "half the KV cache: kv-cache-dtype fp8"
    if (
        weights_bytes is None
        and bytes_per_parameter(shape, flags.quantization)[0] == 2
        and fits(changed=replace(flags, quantization="fp8"))
    ):
        yield "half the weights: a checkpoint in fp8, or quantization fp8"
