#!/usr/bin/env python3
"""Write a GGUF model as the safetensors that vLLM reads, with its tokenizer and chat template.

Run it with the Python of the engine's environment, and gguf and accelerate on PYTHONPATH.
Usage: ``convert_model.py FILE.gguf DIRECTORY``. The directory appears when it is complete, or not at all.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def convert(source: Path, directory: Path) -> None:
    """Save the model of `source`, dequantized to bfloat16, in `directory`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(directory)
    AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    ).save_pretrained(directory)


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: convert_model.py FILE.gguf DIRECTORY", file=sys.stderr)
        return 2
    source, target = map(Path, arguments)
    unfinished = target.with_name(target.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    convert(source, unfinished)
    # Engines run as another user than the one who converts the model.
    for path in (unfinished, *unfinished.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    unfinished.rename(target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
