#!/usr/bin/env python3
"""Write a model's directory without weights, which vLLM starts with load-format dummy: its config.json and a tokenizer.

Usage: ``make_shape.py DIRECTORY < config.json``, with the Python of the engine's environment. The tokenizer is that of lab/engine/make_model.py,
filled up to the model's vocabulary, so that each token that is sampled has a text.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import make_model


def fill(tokenizer: dict[str, Any], size: int) -> None:
    """Add words to a tokenizer.json until it has `size` tokens."""
    vocabulary = tokenizer["model"]["vocab"]
    for number in range(max(vocabulary.values()) + 1, size):
        vocabulary[f"word{number}"] = number


def main(directory: Path, config: dict[str, Any]) -> None:
    unfinished = directory.with_name(f"{directory.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    ids = make_model.save_tokenizer(unfinished)
    path = unfinished / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    fill(tokenizer, int(config["vocab_size"]))
    path.write_text(json.dumps(tokenizer))
    ends = {name: ids[name] for name in ("eos_token_id", "pad_token_id")}
    (unfinished / "config.json").write_text(json.dumps({**config, **ends}))
    for file in unfinished.iterdir():
        file.chmod(0o644)
    unfinished.chmod(0o755)
    unfinished.rename(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.load(sys.stdin))
