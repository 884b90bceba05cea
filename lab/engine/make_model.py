#!/usr/bin/env python3
"""Write a tiny Qwen3 model with random weights: about 1.1 million parameters, 2.5 MB, nothing downloaded.

Its answers are nonsense, but it has the parts of a real model: a trained byte-level BPE tokenizer (trained on
the standard library's sources, which every machine has), a chat template, safetensors weights and an
end-of-turn token.

Run it with the Python of the engine's environment (it needs torch, tokenizers and transformers).
Usage: ``make_model.py DIRECTORY``. The directory appears when it is complete, or not at all.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCABULARY = 4096
CONTEXT = 4096  # tokens
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def corpus() -> Iterator[str]:
    """Text to train the tokenizer on, in a stable order."""
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        yield source.read_text(encoding="utf-8", errors="replace")


def save_tokenizer(directory: Path) -> dict[str, int]:
    """Train and save the tokenizer; returns the ids that the model's configuration needs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    saved = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=TURN_END, pad_token=PAD, model_max_length=CONTEXT
    )
    saved.chat_template = CHAT_TEMPLATE
    saved.save_pretrained(directory)
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "eos_token_id": tokenizer.token_to_id(TURN_END),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }


def save_model(directory: Path, ids: dict[str, int]) -> None:
    """Save weights that are random but the same every time."""
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        dtype="bfloat16",
        **ids,
    )
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=ids["eos_token_id"], pad_token_id=ids["pad_token_id"])
    model.save_pretrained(directory)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: make_model.py DIRECTORY", file=sys.stderr)
        return 2
    target = Path(arguments[0])
    if target.exists():
        print(f"{target} is there already")
        return 0
    unfinished = target.with_name(target.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_model(unfinished, save_tokenizer(unfinished))
    # Engines run as another user than the one who makes the model.
    for path in (unfinished, *unfinished.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    unfinished.rename(target)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
