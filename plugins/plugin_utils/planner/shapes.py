"""The shape of a model, from its config.json: the number of parameters of each part, and the bytes of a token in the KV cache."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .flags import PlanError
from .unquantized import Unquantized

FULL, SLIDING, LINEAR = "full", "sliding", "linear"
# The names of each field in different configurations, the usual one first.
_ALIASES = {
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "num_attention_heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "vocab_size": ("vocab_size",),
}
# Keys under which a configuration with several parts has the language model's.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_SHARED_EXPERTS = ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "top_k_experts", "moe_k", "moe_topk")
_TEXT_PARTS = ("text_config", "llm_config", "language_config")
# Families whose feed-forward layers have two matrices. The others have three: gate, up and down.
_UNGATED = (
    "phi",
    "gpt2",
    "gptj",
    "gpt_neox",
    "opt",
    "falcon",
    "bloom",
    "mpt",
    "starcoder2",
    "gpt_bigcode",
    "nemotron",
    "nemotron_h",
)
# Families that were compared with real starts or whose layers follow the plain scheme. Others are planned, as estimates.
_KNOWN = (
    *(
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "phi",
        "phi3",
        "gemma",
        "gemma2",
        "granite",
        "granitemoe",
    ),
    *(
        "deepseek_v2",
        "deepseek_v3",
        "glm4_moe",
        "gpt_oss",
        "olmo2",
        "cohere",
        "stablelm",
        "internlm2",
        "starcoder2",
        "kimi_k2",
    ),
)
# Families whose head is the embedding, unless their configuration says otherwise.
_TIED = ("gemma", "cohere")
# Families of encoders, which process a text as a whole and have no KV cache.
_ENCODERS = ("bert", "roberta", "xlm-roberta", "modernbert", "distilbert", "nomic_bert", "new")
# Methods whose bytes of a weight are known.
_SIZED = (
    "fp8",
    "fbgemm_fp8",
    "modelopt",
    "modelopt_fp4",
    "compressed_tensors",
    "awq",
    "gptq",
    "auto_round",
    "bitsandbytes",
    "mxfp4",
)
# Methods that a checkpoint has to be made with; vLLM cannot apply them while it loads another one.
OF_CHECKPOINTS = (
    "awq",
    "awq_marlin",
    "gptq",
    "gptq_marlin",
    "compressed-tensors",
    "auto-round",
    "modelopt",
    "modelopt_fp4",
)
_LARGEST = 10**8
_BITS = {"awq": 4, "gptq": 4, "awq_marlin": 4, "gptq_marlin": 4, "bitsandbytes": 4, "auto-round": 4}


@dataclass(frozen=True)
class Shape:
    """A model's dimensions. Parameters are counts, before any division among GPUs."""

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    context: int
    kinds: tuple[str, ...]
    attention_layer: int
    linear_layer: int
    window: int = 0
    mla_dim: int = 0
    linear_state: tuple[int, int] = (0, 0)
    dense_layers: int = 0
    expert_layers: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    gated: bool = True
    vision: int = 0
    any_resolution: bool = False  # its vision tower takes images as large as they are
    rotary_dim: int = 0
    cache_fp8: bool = False  # the checkpoint brings scales for a KV cache in fp8
    dtype: str = "bfloat16"
    quantization: Mapping[str, Any] = field(default_factory=dict)
    # Compressed attention (DeepSeek V4), whose caches follow no rule that is known here.
    compressed_cache: bool = False
    estimates: tuple[str, ...] = ()

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, which vLLM pads to a multiple of 64 tokens; those of a head of its own are as many."""
        return math.ceil(self.vocabulary / 64) * 64 * self.hidden

    @property
    def expert_parameters(self) -> int:
        """Parameters of the routed experts."""
        return self.expert_layers * self.experts * (3 if self.gated else 2) * self.hidden * self.expert_intermediate

    @property
    def layer_parameters(self) -> int:
        """Parameters of all layers but the routed experts."""
        attention = sum(kind != LINEAR for kind in self.kinds) * self.attention_layer
        linear = sum(kind == LINEAR for kind in self.kinds) * self.linear_layer
        matrices = 3 if self.gated else 2
        dense = self.dense_layers * matrices * self.hidden * self.intermediate
        shared = self.expert_layers * (3 * self.hidden * self.shared_intermediate + self.hidden * self.experts)
        return attention + linear + dense + shared + self.layers * 2 * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters of the language model."""
        return self.layer_parameters + self.expert_parameters + self.embedding * (1 if self.tied else 2)


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The shape that a config.json describes. Raises PlanError with all that is missing."""
    if not isinstance(config, Mapping):
        raise PlanError(["config.json is no JSON object"])
    part: Mapping[str, Any] = next((config[name] for name in _TEXT_PARTS if isinstance(config.get(name), Mapping)), {})
    text = {**config, **{name: value for name, value in part.items() if value is not None}}
    problems: list[str] = []
    layers, hidden, heads, vocabulary = (_required(text, name, problems) for name in _ALIASES)
    if config.get("is_encoder_decoder") or text.get("is_encoder_decoder"):
        problems.append("the model has an encoder and a decoder, and only decoders are planned")
    if problems:
        raise PlanError(problems)
    family = _family(text)
    if family in _ENCODERS:
        raise PlanError(
            [f"the family {family} is an encoder, which has no KV cache to plan: it needs its weights and about 1 GiB"]
        )
    head_dim = _whole(text, "head_dim", max(1, hidden // heads), problems)
    kv_heads = _whole(text, "num_key_value_heads", _whole(text, "num_kv_heads", heads, problems), problems)
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        kv_heads = 1  # Falcon
    intermediate = _whole(text, "intermediate_size", _whole(text, "ffn_hidden_size", 4 * hidden, problems), problems)
    experts = max(_whole(text, name, 0, problems) for name in _EXPERTS)
    kinds = _kinds(text, family, layers, problems)
    dense_intermediate = _whole(
        text, "intermediate_size_mlp", intermediate, problems
    )  # Llama 4: the other is an expert's
    expert_layers, dense_layers = _feed_forward_layers(text, layers, experts, problems)
    shared = _shared_intermediate(text, family, intermediate, problems)
    state, linear_layer = _linear(text, hidden, problems) if LINEAR in kinds else ((0, 0), 0)
    # Falcon-H1 has Mamba and attention side by side in each layer.
    beside = _linear(text, hidden, problems)[1] if family == "falcon_h1" else 0
    latent = _whole(text, "kv_lora_rank", 0, problems)
    quantization = text.get("quantization_config") or text.get("compression_config") or {}
    shape = Shape(
        family=family,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=max(1, kv_heads),
        head_dim=head_dim,
        intermediate=dense_intermediate,
        vocabulary=vocabulary,
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", family.startswith(_TIED)))),
        context=_context(text, problems),
        kinds=kinds,
        attention_layer=_attention(text, hidden, heads, max(1, kv_heads), head_dim, family, problems) + beside,
        linear_layer=linear_layer,
        window=_whole(text, "sliding_window", _whole(text, "attention_chunk_size", 0, problems), problems),
        mla_dim=latent and latent + _whole(text, "qk_rope_head_dim", 64, problems),
        linear_state=state,
        dense_layers=dense_layers,
        expert_layers=expert_layers,
        experts=experts,
        experts_per_token=max(1, *(_whole(text, name, 0, problems) for name in _EXPERTS_PER_TOKEN)) if experts else 0,
        expert_intermediate=_whole(text, "moe_intermediate_size", intermediate, problems) if experts else 0,
        shared_intermediate=shared,
        gated=family not in _UNGATED,
        vision=_vision(config.get("vision_config")),
        any_resolution=_takes_any_resolution(family, config.get("vision_config")),
        rotary_dim=_whole(text, "qk_rope_head_dim", head_dim, problems),
        cache_fp8=isinstance(quantization, Mapping) and _has_fp8_cache(quantization),
        dtype=str(text.get("torch_dtype") or text.get("dtype") or "bfloat16").removeprefix("torch."),
        quantization=quantization if isinstance(quantization, Mapping) else {},
        compressed_cache=bool(text.get("compress_ratios")),
    )
    if problems:
        raise PlanError(problems)
    return Shape(**{**vars(shape), "estimates": tuple(_estimates(shape, text))})


def bytes_per_parameter(shape: Shape, quantization: str | None = None) -> tuple[float, float]:
    """What a parameter takes in layers and in routed experts, in bytes. The embedding and the head stay at two.

    Modules that the quantization leaves out have two bytes, too, and so raise the average.
    """
    size, expert_size = _quantized_bytes(shape, quantization)
    left_out = Unquantized.of(shape.quantization)
    if not left_out or size == expert_size == 2.0:
        return size, expert_size
    plain, expert_plain = _unquantized_shares(shape, left_out)
    return size + (2.0 - size) * plain, expert_size + (2.0 - expert_size) * expert_plain


def _unquantized_shares(shape: Shape, left_out: Unquantized) -> tuple[float, float]:
    """Which share of the parameters of layers, and of routed experts, is not quantized."""
    matrices = 3 if shape.gated else 2
    sparse = {layer for layer in range(shape.layers) if layer >= shape.layers - shape.expert_layers}
    total = plain = expert_plain = 0.0
    for layer in range(shape.layers):
        kind = shape.kinds[layer] if layer < len(shape.kinds) else FULL
        parts = [
            (shape.linear_layer, "linear_attn.in_proj_qkvz")
            if kind == LINEAR
            else (shape.attention_layer, "self_attn.q_proj")
        ]
        if layer in sparse:
            shared = 3 * shape.hidden * shape.shared_intermediate
            parts += [(shared, "mlp.shared_expert.gate_proj"), (shape.hidden * shape.experts, "mlp.gate")]
            expert_plain += left_out.has(layer, "mlp.experts.0.gate_proj")
        elif shape.dense_layers:
            parts.append((matrices * shape.hidden * shape.intermediate, "mlp.gate_proj"))
        total += sum(parameters for parameters, _ in parts)
        plain += sum(parameters for parameters, module in parts if left_out.has(layer, module))
    return plain / total if total else 0.0, expert_plain / len(sparse) if sparse else 0.0


def _quantized_bytes(shape: Shape, quantization: str | None) -> tuple[float, float]:
    """What a quantized parameter takes in layers and in routed experts, in bytes."""
    method = str(quantization or shape.quantization.get("quant_method") or "").lower()
    if not method:
        return 2.0, 2.0
    if method in ("mxfp4", "gpt_oss_mxfp4"):
        # Half a byte and a scale of one byte for 32 of them; vLLM pads the experts' matrices by about 6 %. The rest is not quantized.
        return 2.0, 0.53125 * 1.06
    group = _group(shape.quantization)
    bits, is_float = _weight_bits(method, shape.quantization)
    if bits >= 16:
        return 2.0, 2.0
    if bits == 8:
        return 1.0, 1.0
    # A scale of two bytes for each group, and for AWQ a zero point of as many bits as a weight.
    zero = bits / 8 if method.startswith("awq") else 0.0
    scale = 1.0 if is_float else 2.0
    size = bits / 8 + (scale + zero) / group
    return size, size


def _weight_bits(method: str, quantization: Mapping[str, Any]) -> tuple[int, bool]:
    """Bits of a weight, and whether it is a floating-point number."""
    if "fp4" in str(quantization.get("quant_algo") or quantization.get("format") or method).lower():
        return 4, True
    if method == "compressed-tensors":
        groups = quantization.get("config_groups")
        weights = (
            [group.get("weights") for group in groups.values() if isinstance(group, Mapping)]
            if isinstance(groups, Mapping)
            else []
        )
        bits = [weight.get("num_bits") for weight in weights if isinstance(weight, Mapping)]
        return (int(bits[0]) if bits and isinstance(bits[0], int) else 8), False
    stated = quantization.get("bits") or quantization.get("w_bit")
    if method in _BITS:
        return (stated if isinstance(stated, int) and 0 < stated <= 16 else _BITS[method]), False
    return 8, True  # fp8, int8, modelopt and others of one byte


def _group(quantization: Mapping[str, Any]) -> int:
    """Weights that share a scale."""
    groups = quantization.get("config_groups")
    inner = (
        [group.get("weights") for group in groups.values() if isinstance(group, Mapping)]
        if isinstance(groups, Mapping)
        else []
    )
    sizes = [quantization.get("group_size"), quantization.get("q_group_size")]
    sizes += [weights.get("group_size") for weights in inner if isinstance(weights, Mapping)]
    return next((size for size in sizes if isinstance(size, int) and size > 0), 128)


def _family(text: Mapping[str, Any]) -> str:
    """The family's name in transformers, such as qwen3_moe; made of the architecture's where a configuration has no model_type."""
    stated = text.get("model_type")
    if isinstance(stated, str) and stated:
        return stated.removesuffix("_text")
    architectures = text.get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", re.sub(r"For[A-Z].*", "", name)).lower()


def _required(text: Mapping[str, Any], name: str, problems: list[str]) -> int:
    key = next((alias for alias in _ALIASES[name] if text.get(alias) is not None), None)
    if key is None:
        problems.append(f"config.json has no {name}, so it is not a language model's, or of an unknown form")
        return 1
    return _whole(text, key, 1, problems, least=1)


def _whole(text: Mapping[str, Any], name: str, default: int, problems: list[str], least: int = 0) -> int:
    value = text.get(name)
    if value is None:
        return default
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        value = max(value)  # one for each layer: the largest is on the safe side
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
        shown = repr(value)
        problems.append(
            f"config.json: {name} is {shown[:37] + '...' if len(shown) > 40 else shown}, which is no number of a model's"
        )
        return max(default, least)
    return value


def _context(text: Mapping[str, Any], problems: list[str]) -> int:
    """The longest context in tokens, stretched as the rotary embedding says."""
    trained = _whole(
        text,
        "max_position_embeddings",
        _whole(text, "n_positions", _whole(text, "max_seq_len", 0, problems), problems),
        problems,
    )
    longest = max(trained, _whole(text, "model_max_length", 0, problems))
    scaling = text.get("rope_scaling") or text.get("rope_parameters")
    if isinstance(scaling, Mapping):
        factor, base = scaling.get("factor"), scaling.get("original_max_position_embeddings") or trained
        if isinstance(factor, (int, float)) and isinstance(base, int) and 0 < factor <= 10**4:
            longest = max(longest, min(int(base * factor), _LARGEST))
    return longest or 2048


def _kinds(text: Mapping[str, Any], family: str, layers: int, problems: list[str]) -> tuple[str, ...]:
    """What each layer with a state is: full attention, attention in a sliding window, or linear (also Mamba)."""
    if layers > 10_000:
        problems.append(f"config.json: {layers} layers are more than any model has")
        return ()
    listed = text.get("layer_types") or text.get("layers_block_type")
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str):  # Nemotron-H: M Mamba, * attention, - and E without a state
        return tuple(LINEAR if letter == "M" else FULL for letter in pattern if letter in "M*")
    if isinstance(listed, list):
        if len(listed) != layers:
            problems.append(f"config.json lists the kinds of {len(listed)} layers and has {layers}")
            return ()
        return tuple(map(_kind, map(str, listed)))
    window = bool(text.get("sliding_window")) and text.get("use_sliding_window") is not False
    every = _every(text, family, problems)
    if every:
        other = (
            LINEAR
            if text.get("linear_num_value_heads") or text.get("attn_layer_period")
            else SLIDING
            if window or text.get("attention_chunk_size")
            else FULL
        )
        offset = _whole(text, "attn_layer_offset", every - 1, problems)
        return tuple(FULL if index % every == offset else other for index in range(layers))
    indexes = text.get("attn_layer_indices")
    if isinstance(indexes, list):
        return tuple(FULL if index in indexes else LINEAR for index in range(layers))
    if family.startswith("mamba") or family.startswith("falcon_mamba"):
        return (LINEAR,) * layers
    return (SLIDING if window else FULL,) * layers


def _every(text: Mapping[str, Any], family: str, problems: list[str]) -> int:
    """N if every N-th layer has full attention; 0 if all layers are alike."""
    names = ("full_attention_interval", "attn_layer_period", "sliding_window_pattern", "no_rope_layer_interval")
    stated = next((_whole(text, name, 0, problems) for name in names if isinstance(text.get(name), int)), 0)
    if stated:
        return stated
    if family == "gemma2":
        return 2
    if family == "gemma3":
        return 6
    return 4 if text.get("attention_chunk_size") else 0


def _kind(word: str) -> str:
    if "sliding" in word or "chunked" in word:
        return SLIDING
    return LINEAR if any(part in word for part in ("linear", "mamba", "recurrent", "conv")) else FULL


def _attention(
    text: Mapping[str, Any], hidden: int, heads: int, kv_heads: int, head_dim: int, family: str, problems: list[str]
) -> int:
    """Parameters of one layer's attention."""
    rank = _whole(text, "kv_lora_rank", 0, problems)
    if rank:
        rope, nope = _whole(text, "qk_rope_head_dim", 64, problems), _whole(text, "qk_nope_head_dim", 128, problems)
        value, queries = _whole(text, "v_head_dim", 128, problems), _whole(text, "q_lora_rank", 0, problems)
        query = queries * (hidden + heads * (nope + rope)) if queries else hidden * heads * (nope + rope)
        return query + hidden * (rank + rope) + rank * heads * (nope + value) + heads * value * hidden
    gate = heads * head_dim * hidden if family.startswith(("qwen3_next", "qwen3_5")) else 0
    return hidden * head_dim * (heads + 2 * kv_heads) + heads * head_dim * hidden + gate


def _linear(text: Mapping[str, Any], hidden: int, problems: list[str]) -> tuple[tuple[int, int], int]:
    """The elements that one layer of linear attention or Mamba keeps per request (convolution, state), and its parameters."""
    values = _whole(text, "linear_num_value_heads", 0, problems)
    if values:
        keys, key_dim = (
            _whole(text, "linear_num_key_heads", values, problems),
            _whole(text, "linear_key_head_dim", 128, problems),
        )
        value_dim = _whole(text, "linear_value_head_dim", 128, problems)
        width = 2 * keys * key_dim + values * value_dim
        kernel = _whole(text, "linear_conv_kernel_dim", 4, problems)
        parameters = hidden * (width + values * value_dim + 2 * values) + width * kernel + values * value_dim * hidden
        return (width * max(0, kernel - 1), values * key_dim * value_dim), parameters
    state = _whole(
        text,
        "ssm_state_size",
        _whole(text, "mamba_d_state", _whole(text, "state_size", 128, problems), problems),
        problems,
    )
    heads = _whole(text, "mamba_num_heads", _whole(text, "mamba_n_heads", 0, problems), problems)
    head_dim = _whole(text, "mamba_head_dim", _whole(text, "mamba_d_head", 64, problems), problems)
    inner = heads * head_dim or _whole(text, "mamba_expand", 2, problems) * hidden
    groups = _whole(text, "mamba_n_groups", _whole(text, "n_groups", 1, problems), problems)
    kernel = _whole(text, "mamba_d_conv", _whole(text, "conv_kernel", 4, problems), problems)
    width = inner + 2 * groups * state
    return (width * max(0, kernel - 1), inner * state), hidden * (
        width + inner + heads
    ) + width * kernel + inner * hidden


def _feed_forward_layers(text: Mapping[str, Any], layers: int, experts: int, problems: list[str]) -> tuple[int, int]:
    """How many layers have routed experts, and how many a dense feed-forward network."""
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return pattern.count("E"), pattern.count("-")
    if not experts:
        return 0, layers
    frequency = text.get("moe_layer_freq")
    if isinstance(frequency, list) and len(frequency) == layers:
        return sum(map(bool, frequency)), layers - sum(map(bool, frequency))
    period, offset = _whole(text, "expert_layer_period", 0, problems), _whole(text, "expert_layer_offset", 0, problems)
    if period:  # Jamba
        sparse = sum(index % period == offset for index in range(min(layers, 10_000)))
        return sparse, layers - sparse
    dense_first = max(_whole(text, name, 0, problems) for name in ("first_k_dense_replace", "moe_layer_start_index"))
    step = max(1, _whole(text, "decoder_sparse_step", _whole(text, "interleave_moe_layer_step", 1, problems), problems))
    stated = text.get("mlp_only_layers")
    dense_only = stated if isinstance(stated, list) else []
    sparse = sum(
        (index + 1) % step == 0 and index >= dense_first and index not in dense_only
        for index in range(min(layers, 10_000))
    )
    return sparse, layers - sparse


def _shared_intermediate(text: Mapping[str, Any], family: str, intermediate: int, problems: list[str]) -> int:
    """The width of the experts that see every token, all together."""
    if family.startswith("llama4"):
        return intermediate
    number = max(_whole(text, name, 0, problems) for name in _SHARED_EXPERTS)
    names = ("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "shared_intermediate_size")
    stated = [_whole(text, name, 0, problems) for name in names]
    return max(number * _whole(text, "moe_intermediate_size", intermediate, problems), *stated)


def _vision(config: Any) -> int:
    """Parameters of a vision tower, roughly; 0 without one."""
    if not isinstance(config, Mapping):
        return 0
    problems: list[str] = []
    width = _whole(config, "hidden_size", 1024, problems)
    depth = _whole(config, "num_hidden_layers", _whole(config, "depth", 24, problems), problems)
    tower = depth * (4 * width * width + 2 * width * _whole(config, "intermediate_size", 4 * width, problems))
    # Qwen's towers join neighbouring patches by an MLP, and by one more for each layer that is also handed on.
    joined = width * _whole(config, "spatial_merge_size", 0, problems) ** 2
    onward = config.get("deepstack_visual_indexes")
    mergers = 1 + (len(onward) if isinstance(onward, list) else 0)
    return tower + mergers * joined * (joined + _whole(config, "out_hidden_size", width, problems))


def _takes_any_resolution(family: str, config: Any) -> bool:
    """Whether the tower takes images of any size, as Qwen's do: vLLM then profiles with the largest image that fits."""
    return isinstance(config, Mapping) and (
        "vl" in family or family.startswith("qwen3_5") or "spatial_merge_size" in config
    )


def _has_fp8_cache(quantization: Mapping[str, Any]) -> bool:
    return bool(quantization.get("kv_cache_scheme")) or "FP8" in str(quantization.get("kv_cache_quant_algo")).upper()


def _estimates(shape: Shape, text: Mapping[str, Any]) -> list[str]:
    """Why a plan for this model is an estimate."""
    found = []
    if shape.family not in _KNOWN:
        found.append(f"the family {shape.family} was not compared with real starts")
    method = str(shape.quantization.get("quant_method") or "").lower().replace("-", "_")
    if method and method not in _SIZED:
        found.append(f"the bytes of a weight in {method} are not known; one is assumed")
    if LINEAR in shape.kinds:
        found.append(
            "layers of linear attention or Mamba keep a state per request, whose size depends on vLLM's choices"
        )
    if shape.vision:
        found.append("the vision tower's memory is a rough figure")
    if shape.compressed_cache:
        found.append(
            "how many tokens its compressed caches keep is not known: set kv-cache-memory-bytes after the first start"
        )
    elif text.get("index_topk"):
        found.append("sparse attention has caches of its own: set kv-cache-memory-bytes after the first start")
    if isinstance(text.get("head_dim"), list) or text.get("global_head_dim"):
        found.append("layers differ in the size of their KV heads")
    return found
