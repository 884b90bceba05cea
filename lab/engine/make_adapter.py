#!/usr/bin/env python3
"""Write a LoRA adapter with random weights for a small model, in PEFT's format. Nothing is downloaded.

Run it with the Python of the engine's environment (it needs torch and safetensors). The same directory name gives the same weights.
Usage: ``make_adapter.py MODEL DIRECTORY``. The directory appears when it is complete, or not at all.
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from pathlib import Path

RANK = 8
MODULE = "self_attn.q_proj"


def main(model: Path, directory: Path) -> None:
    import torch
    from safetensors.torch import save

    config = json.loads((model / "config.json").read_text())
    width, queries = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    torch.manual_seed(zlib.crc32(directory.name.encode()))
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.{MODULE}"
        weights[f"{name}.lora_A.weight"] = torch.randn(RANK, width)
        weights[f"{name}.lora_B.weight"] = torch.randn(queries, RANK)
    unfinished = directory.with_name(f"{directory.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    # Not by save_file, whose files only their owner can read.
    (unfinished / "adapter_model.safetensors").write_bytes(save(weights))
    settings = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": [MODULE.split(".")[1]],
        "bias": "none",
    }
    (unfinished / "adapter_config.json").write_text(json.dumps(settings))
    unfinished.rename(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
