"""Modules that a checkpoint's quantization leaves out, by the lists of its config.json."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What the methods call the list.
_LISTS = ("ignore", "modules_to_not_convert", "ignored_layers", "exclude_modules")
# Where language models have their layers; in models of several parts behind a prefix.
_PREFIXES = ("model.layers", "model.language_model.layers", "language_model.model.layers", "backbone.layers")
# The same part under the names that families have for it.
_NAMES = {
    "mlp.shared_expert.gate_proj": ("mlp.shared_expert.gate_proj", "mlp.shared_experts.gate_proj"),
    "mlp.experts.0.gate_proj": ("mlp.experts.0.gate_proj", "mlp.experts", "block_sparse_moe.experts.0.w1"),
    "mlp.gate": ("mlp.gate", "mlp.router", "block_sparse_moe.gate"),
    "linear_attn.in_proj_qkvz": ("linear_attn.in_proj_qkvz", "linear_attn.in_proj_qkv"),
}
# Longer regular expressions are no list of modules.
_LONGEST = 300


@dataclass(frozen=True)
class Unquantized:
    """Names and patterns of modules. A name stands for all below it."""

    names: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]

    @classmethod
    def of(cls, quantization: Mapping[str, Any]) -> Unquantized | None:
        """None if everything is quantized but what never is: the head and the embedding."""
        entries = [entry for name in _LISTS for entry in _texts(quantization.get(name))]
        # GPTQ's: "-:" and a regular expression leaves modules out.
        entries += [f"re:{entry[2:]}" for entry in _texts(quantization.get("dynamic")) if entry.startswith("-:")]
        names: set[str] = set()
        patterns = []
        for entry in entries:
            try:
                if entry.startswith("re:"):
                    patterns.append(re.compile(entry[3 : 3 + _LONGEST]))
                elif any(letter in entry for letter in "*?["):
                    patterns.append(re.compile(fnmatch.translate(entry) + "|" + fnmatch.translate(f"{entry}.*")))
                else:
                    names.add(entry)
            except re.error:
                continue  # vLLM itself will say so
        names -= {"lm_head", "model.embed_tokens"}
        return cls(frozenset(names), tuple(patterns)) if names or patterns else None

    def has(self, layer: int, module: str) -> bool:
        """Whether a layer's module is left out."""
        return any(
            self._has(f"{prefix}.{layer}.{name}") for prefix in _PREFIXES for name in _NAMES.get(module, (module,))
        )

    def _has(self, name: str) -> bool:
        parts = name.split(".")
        above = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
        # A bare word is any part of the name, as in transformers.
        return bool((above | set(parts)) & self.names) or any(pattern.match(name) for pattern in self.patterns)


def _texts(value: Any) -> list[str]:
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, (list, tuple, Mapping)) else []
