#!/usr/bin/env python3
"""Print which parsers of tool calls and of reasoning fit models, as JSON: by directory, options of `vllm serve`.

    model_parsers.py DIRECTORY...

A wrong parser is worse than none: it loses answers. So a family is in the tables only if vLLM documents its parser for models that bring
their own chat template, and it fits only if the model's config.json names it and its chat template shows the format that the parser reads.
From https://docs.vllm.ai/en/latest/features/tool_calling/ and https://docs.vllm.ai/en/latest/features/reasoning_outputs/, November 2026.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple


class Family(NamedTuple):
    """Models whose config.json has one of the types and whose chat template contains one of the texts (if there are any)."""

    parser: str
    model_types: set[str]
    template_has: tuple[str, ...] = ()


QWEN2, QWEN3, GLM4 = {"qwen2"}, {"qwen3", "qwen3_moe"}, {"glm4_moe", "glm4_moe_lite"}

# The first family that fits counts. In a template's source, a line break within quotes is written \n.
TOOL_CALL = [
    # Qwen2.5, QwQ and Qwen3: <tool_call> around JSON.
    Family("hermes", QWEN2 | QWEN3, ('{"name": <function-name>', '{\\"name\\": <function-name>')),
    # Qwen3-Coder: <tool_call> around XML.
    Family("qwen3_xml", QWEN3, ("<function=",)),
    Family("openai", {"gpt_oss"}),
    # GLM-4.5 and 4.6 end a line after the function's name, GLM-4.7 does not.
    Family("glm45", GLM4, ("{function-name}\n<arg_key>", "{function-name}\\n<arg_key>")),
    Family("glm47", GLM4, ("{function-name}<arg_key>",)),
    Family("granite4", {"granitemoehybrid"}, ("<tool_call>",)),
    Family("kimi_k2", {"kimi_k2"}, ("<|tool_call_begin|>",)),
    Family("olmo3", {"olmo3"}, ("<function_calls>",)),
]
REASONING = [
    # Models that always think, or that think unless a request says otherwise. Instruct models of the same types do not think.
    Family("qwen3", QWEN3, ("enable_thinking", "<|im_start|>assistant\\n<think>")),
    # QwQ.
    Family("deepseek_r1", QWEN2, ("<|im_start|>assistant\\n<think>",)),
    # DeepSeek R1 and what was distilled from it. V3.1, which thinks if a request says so, has a parser of its own.
    Family("deepseek_v3", {"deepseek_v3"}, ("thinking is defined",)),
    Family("deepseek_r1", {"deepseek_v3", "llama"} | QWEN2, ("<\uff5cAssistant\uff5c><think>",)),
    Family("glm45", GLM4, ("enable_thinking",)),
]


def options_of(model: Path) -> dict[str, Any]:
    """The options for a model. None if the model cannot be read, or belongs to no known family."""
    model_type, template = _read(model / "config.json").get("model_type"), _chat_template(model)
    calls, reasoning = (
        next((one.parser for one in table if model_type in one.model_types and _fits(one, template)), None)
        for table in (TOOL_CALL, REASONING)
    )
    options: dict[str, Any] = {"tool-call-parser": calls, "enable-auto-tool-choice": True} if calls else {}
    return options | ({"reasoning-parser": reasoning} if reasoning else {})


def _fits(family: Family, template: str) -> bool:
    return not family.template_has or any(text in template for text in family.template_has)


def _chat_template(model: Path) -> str:
    """The model's own chat template, from the file that vLLM reads; "" if it has none."""
    try:
        return (model / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        template = _read(model / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several named templates; vLLM uses the one called tool_use for requests with tools
        return "\n".join(str(one.get("template")) for one in template if isinstance(one, dict))
    return template if isinstance(template, str) else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


if __name__ == "__main__":
    print(json.dumps({directory: options_of(Path(directory)) for directory in sys.argv[1:]}))
