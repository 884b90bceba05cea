"""The arithmetic of one GPU's memory: weights, vLLM's other needs, and the rest for the KV cache.

Each constant was fitted on public logs of vLLM's starts, which tests/unit/planner/starts.jsonl lists with their addresses; docs/planner.md says how
well it does on starts that it was not fitted on. All sizes are in bytes unless a name says GiB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .flags import FP8_CACHES, Flags
from .shapes import FULL, LINEAR, SLIDING, Shape, bytes_per_parameter

GIB = 2**30
# The allocator gives out memory in steps of this size.
_ALLOCATION = 2 * 2**20
# vLLM's default block of the KV cache, in tokens.
_BLOCK = 16
# The sampler's buffers for each sequence and each token of the vocabulary. Up to vLLM 0.16 it copied the logits more often.
_SAMPLER, _SAMPLER_UP_TO_0_16 = 14.2, 38.5
# Allocated for any model: the rest of the CUDA context, cuBLAS workspaces, vLLM's own buffers.
_BASE_GIB = 0.11
# Outside of PyTorch on one GPU: on Hopper and newer, and on older ones.
_CONTEXT_GIB, _CONTEXT_BEFORE_HOPPER_GIB = 0.25, 0.12
# Communication of tensor parallel ranks, by how they are connected.
_NVLINK_GIB, _NVLINK_BEFORE_HOPPER_GIB, _PCIE_GIB = 1.8, 0.5, 0.2
# Added to the tensors of the largest expert layer.
_EXPERTS_GIB = 0.1
# Profiling with the largest image.
_VISION_GIB, _VISION_ANY_RESOLUTION_GIB = 0.3, 1.25
# Sends and receives between pipeline stages.
_PIPELINE_GIB = 0.4
# What vLLM estimates for the CUDA graphs of all sizes, without layers and for each layer, and since when it takes that from the KV cache.
_GRAPHS_GIB, _GRAPHS_OF_LAYER_GIB = 0.35, 0.0155
_GRAPHS_DEDUCTED_SINCE = (0, 21)
_GRAPH_SIZES: tuple[int, ...] = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))


@dataclass(frozen=True)
class Card:
    """A GPU with the memory that vLLM can use. `exact` says whether the total is known or estimated."""

    name: str
    total_gib: float
    compute_capability: float
    nvlink: bool
    exact: bool = True

    @property
    def default_seqs(self) -> int:
        """vLLM's default of max-num-seqs."""
        return 1024 if self._is_large else 256

    @property
    def default_batched_tokens(self) -> int:
        """vLLM's default of max-num-batched-tokens."""
        if self.total_gib >= 160:
            return 16384
        return 8192 if self._is_large else 2048

    @property
    def _is_large(self) -> bool:
        return self.total_gib >= 70 and "A100" not in self.name


@dataclass(frozen=True)
class Layout:
    """How an engine is divided, and the options that decide about its memory."""

    tensor: int
    pipeline: int
    max_num_seqs: int
    max_num_batched_tokens: int
    utilization: float
    version: tuple[int, int]


@dataclass(frozen=True)
class Budget:
    """One GPU's memory in GiB, at the rank where the fewest tokens fit, and the tokens that the whole engine keeps."""

    total_gib: float
    weights_gib: float
    activations_gib: float
    communication_gib: float
    graphs_gib: float
    kv_gib: float
    kv_tokens: int
    request_gib: float


def stages(layers: int, pipeline: int) -> list[int]:
    """How vLLM divides layers among pipeline stages: those left over go to the last stages but one."""
    found = [layers // pipeline] * pipeline
    for back in range(2, layers % pipeline + 2):
        found[-back] += 1
    return found


def budget(
    shape: Shape, card: Card, flags: Flags, layout: Layout, length: int, weights_bytes: int | None = None
) -> Budget:
    """The memory of the engine's tightest GPU, for requests of `length` tokens.

    `weights_bytes` are the model's files, if they are known; otherwise the weights are computed.
    """
    found = []
    first = 0
    for rank, count in enumerate(stages(shape.layers, layout.pipeline)):
        kinds = shape.kinds[first : first + count] if len(shape.kinds) == shape.layers else shape.kinds
        first += count
        last = rank == layout.pipeline - 1
        found.append(
            _rank(shape, card, flags, layout, length, kinds, count / shape.layers, rank == 0, last, weights_bytes)
        )
    return min(found, key=lambda rank: (rank.kv_tokens, rank.kv_gib))


def _rank(
    shape: Shape,
    card: Card,
    flags: Flags,
    layout: Layout,
    length: int,
    kinds: tuple[str, ...],
    share: float,
    first: bool,
    last: bool,
    weights_bytes: int | None,
) -> Budget:
    weights = _weights(shape, flags, layout, share, first, last, weights_bytes) / GIB
    activations = _activations(shape, flags, layout, last) / GIB
    communication = _communication_gib(card, layout)
    graphs = 0.0 if flags.enforce_eager else _graphs_gib(share * shape.layers, layout)
    usable = layout.utilization * card.total_gib
    left = usable - weights - activations - communication - graphs
    if flags.kv_cache_memory_bytes:
        # vLLM allocates exactly this, regardless of gpu-memory-utilization, and fails if the card has less.
        room = card.total_gib - weights - activations - communication - graphs
        left = flags.kv_cache_memory_bytes / GIB
        left = left if left <= room else room - left
    request = request_bytes(shape, flags, layout, length, kinds) / GIB
    tokens = int(left / request * length) if left > 0 and request > 0 else 0
    return Budget(card.total_gib, weights, activations, communication, graphs, left, tokens, request)


def _weights(
    shape: Shape, flags: Flags, layout: Layout, share: float, first: bool, last: bool, known: int | None
) -> float:
    """The weights on one rank."""
    size, expert_size = bytes_per_parameter(shape, flags.quantization)
    plain = 4 if flags.dtype in ("float", "float32") else 2  # what is not quantized
    if not flags.quantization and not shape.quantization:
        size = expert_size = plain
    head = 0 if shape.tied and layout.pipeline == 1 else shape.embedding
    ends = plain * (shape.embedding * first + head * last)
    inner = (shape.layer_parameters * size + shape.expert_parameters * expert_size) * share + 2 * shape.vision
    if known is not None:
        whole = 2 * (shape.embedding + (0 if shape.tied else shape.embedding))
        inner = max(0.0, known - whole) * share
    rotary = 2 * shape.context * (shape.rotary_dim or shape.head_dim)
    loss = _rounding(shape, layout.tensor) * share if size == 2 and not shape.experts else 0.0
    lora = _adapters(shape, flags, layout.tensor) * share if flags.enable_lora else 0.0
    return (ends + inner) / layout.tensor + loss + rotary + lora


def _rounding(shape: Shape, tensor: int) -> int:
    """What the allocator loses by giving out each large matrix in whole steps."""
    widths = [
        shape.head_dim * (shape.heads + 2 * max(shape.kv_heads, tensor)) // tensor,
        shape.head_dim * shape.heads // tensor,
        (2 if shape.gated else 1) * shape.intermediate // tensor,
        shape.intermediate // tensor,
    ]
    return shape.layers * sum(
        -(2 * shape.hidden * width) % _ALLOCATION for width in widths if 2 * shape.hidden * width > 10 * 2**20
    )


def _adapters(shape: Shape, flags: Flags, tensor: int) -> float:
    """Room for LoRA adapters: a pair of matrices beside each of a layer's, of which the second is divided among the GPUs."""
    attention = shape.head_dim * shape.heads
    keys = shape.head_dim * shape.kv_heads
    pairs = [(shape.hidden, attention), (shape.hidden, keys), (shape.hidden, keys), (attention, shape.hidden)]
    pairs += [(shape.hidden, shape.intermediate)] * (2 if shape.gated else 1) + [(shape.intermediate, shape.hidden)]
    return (
        2 * flags.max_loras * flags.max_lora_rank * shape.layers * sum(taken + given / tensor for taken, given in pairs)
    )


def _activations(shape: Shape, flags: Flags, layout: Layout, last: bool) -> float:
    """The peak of a profiling step: the sampler, or a forward pass over the largest batch."""
    tokens = layout.max_num_batched_tokens
    per_logit = _SAMPLER if layout.version >= (0, 17) else _SAMPLER_UP_TO_0_16
    sampler = per_logit * min(layout.max_num_seqs, tokens) * shape.vocabulary if last else 0.0
    residual = 2 * tokens * shape.hidden
    forward = 2 * tokens * (3 * shape.intermediate / layout.tensor + shape.hidden) if shape.dense_layers else 0.0
    experts = 0.0
    if shape.experts:
        width = shape.expert_intermediate / layout.tensor
        rows = 2 * tokens * shape.experts_per_token
        experts = rows * (max(2 * width, shape.hidden) + width) + _EXPERTS_GIB * GIB
    seen = bool(shape.vision) and not flags.no_media
    vision = _VISION_GIB * GIB if seen and not shape.any_resolution else 0.0
    # Of a tower that takes any image the profile is as large as the other steps, and not beside them.
    towers = _VISION_ANY_RESOLUTION_GIB * GIB if seen and shape.any_resolution else 0.0
    pipeline = _PIPELINE_GIB * GIB if layout.pipeline > 1 else 0.0
    return max(sampler, forward, towers) + residual + experts + vision + pipeline + _BASE_GIB * GIB


def _communication_gib(card: Card, layout: Layout) -> float:
    """What NCCL and vLLM's own reductions take outside of PyTorch."""
    hopper = card.compute_capability >= 9
    context = _CONTEXT_GIB if hopper else _CONTEXT_BEFORE_HOPPER_GIB
    if layout.tensor == 1:
        return context
    if not card.nvlink:
        return context + _PCIE_GIB
    return context + (_NVLINK_GIB + 0.02 * layout.tensor if hopper else _NVLINK_BEFORE_HOPPER_GIB)


def _graphs_gib(layers: float, layout: Layout) -> float:
    """vLLM's estimate of the CUDA graphs, which it captures for batches of up to twice as many tokens as there are sequences."""
    if layout.version < _GRAPHS_DEDUCTED_SINCE:
        return 0.0
    captured = sum(size <= 2 * layout.max_num_seqs for size in _GRAPH_SIZES)
    return captured / len(_GRAPH_SIZES) * (_GRAPHS_GIB + _GRAPHS_OF_LAYER_GIB * layers)


def token_bytes(shape: Shape, flags: Flags, tensor: int) -> int:
    """Bytes of one token in one layer with attention, on one GPU."""
    by_model = shape.cache_fp8 and flags.kv_cache_dtype == "auto"
    width = 1 if by_model or flags.kv_cache_dtype in FP8_CACHES else 4 if flags.dtype in ("float", "float32") else 2
    if shape.mla_dim:  # one latent vector, which each GPU has whole
        return shape.mla_dim * width
    return 2 * math.ceil(shape.kv_heads / tensor) * shape.head_dim * width


def request_bytes(shape: Shape, flags: Flags, layout: Layout, length: int, kinds: tuple[str, ...]) -> int:
    """What a request of `length` tokens takes of one GPU's KV cache.

    vLLM puts layers of one kind into groups of equal size, which it fills up with layers that do not exist.
    """
    counts = {kind: kinds.count(kind) for kind in (FULL, SLIDING, LINEAR) if kind in kinds}
    token = token_bytes(shape, flags, layout.tensor)
    if not counts:
        return 0
    state = _state_bytes(shape, layout.tensor)
    if set(counts) == {LINEAR}:
        return counts[LINEAR] * state
    block = max(_BLOCK, math.ceil(state / token / _BLOCK) * _BLOCK) if LINEAR in counts else _BLOCK
    group = _group_size(list(counts.values()))
    total = 0
    for kind, count in counts.items():
        kept = {FULL: length, SLIDING: min(length, shape.window - 1 + layout.max_num_batched_tokens), LINEAR: 1}[kind]
        total += math.ceil(count / group) * group * math.ceil(kept / block) * block * token
    return total


def _state_bytes(shape: Shape, tensor: int) -> int:
    """Bytes that one layer of linear attention or Mamba keeps per request: elements of the convolution have two, of the state four."""
    convolution, state = shape.linear_state
    return (2 * convolution + 4 * state) // tensor


def _group_size(counts: list[int]) -> int:
    """Layers of one group: the smallest count, or the largest where that is hardly more."""
    return max(counts) if max(counts) < 1.25 * min(counts) else min(counts)
