"""Options that follow from an engine's model and adapters, and how an operator has the last word."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import model_parsers
import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from stack_preflight import load

ROLE = Path(__file__).resolve().parents[2] / "roles" / "vllm"
# What vLLM registers, of which the tables use a part:
# https://github.com/vllm-project/vllm/blob/0064cc9cb1ae57b1308015d48a57462fa27a68f2/vllm/tool_parsers/__init__.py
TOOL_PARSERS = {"hermes", "qwen3_xml", "openai", "glm45", "glm47", "granite4", "kimi_k2", "olmo3"}
# https://github.com/vllm-project/vllm/blob/0064cc9cb1ae57b1308015d48a57462fa27a68f2/vllm/reasoning/__init__.py
REASONING_PARSERS = {"qwen3", "deepseek_r1", "deepseek_v3", "glm45"}
# Parts of the chat templates of models, as they are in the models' own files.
JSON_CALLS = r"""within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}"""
XML_CALLS = r"""{{- '\n<tool_call>\n<function=' + tool_call.name + '>\n' }}"""
HYBRID = "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
ALWAYS = r"""{{- '<|im_start|>assistant\n<think>\n' }}"""
GLM_45 = "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>"
GLM_47 = "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key>"
R1 = "{{'<\uff5cAssistant\uff5c><think>\\n'}}"
V31 = "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{'<\uff5cAssistant\uff5c></think>'}}"


def model(directory: Path, model_type: str, template: str, file: str = "tokenizer_config.json") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    content = template if file.endswith(".jinja") else json.dumps({"chat_template": template})
    (directory / file).write_text(content, encoding="utf-8")
    return directory


@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize(
    ("model_type", "template", "calls", "reasoning"),
    [
        ("qwen3", JSON_CALLS + HYBRID, "hermes", "qwen3"),  # Qwen3-8B
        ("qwen3_moe", JSON_CALLS + ALWAYS, "hermes", "qwen3"),  # Qwen3-30B-A3B-Thinking-2507
        ("qwen3_moe", JSON_CALLS, "hermes", None),  # Qwen3-30B-A3B-Instruct-2507
        ("qwen3_moe", XML_CALLS, "qwen3_xml", None),  # Qwen3-Coder-30B-A3B-Instruct
        ("qwen2", JSON_CALLS, "hermes", None),  # Qwen2.5-7B-Instruct
        ("qwen2", JSON_CALLS + ALWAYS, "hermes", "deepseek_r1"),  # QwQ-32B
        ("qwen2", R1, None, "deepseek_r1"),  # DeepSeek-R1-Distill-Qwen-7B
        ("llama", R1, None, "deepseek_r1"),  # DeepSeek-R1-Distill-Llama-8B
        ("llama", "{{ '<|start_header_id|>' }}", None, None),  # Llama-3.1: needs a template that it does not bring
        ("deepseek_v3", R1, None, "deepseek_r1"),
        ("deepseek_v3", V31, None, "deepseek_v3"),
        ("glm4_moe", GLM_45 + HYBRID, "glm45", "glm45"),
        ("glm4_moe", GLM_47 + HYBRID, "glm47", "glm45"),
        ("gpt_oss", "{{ x }}", "openai", None),  # vLLM itself chooses the parser of its reasoning
        ("mistral", JSON_CALLS + HYBRID, None, None),
        ("qwen3", "{{ messages }}", None, None),  # a base model
    ],
)
def test_a_model_gets_the_parsers_of_its_family(
    tmp_path: Path, file: str, model_type: str, template: str, calls: str | None, reasoning: str | None
) -> None:
    options = model_parsers.options_of(model(tmp_path, model_type, template, file))
    assert options.get("tool-call-parser") == calls
    assert options.get("reasoning-parser") == reasoning
    assert options.get("enable-auto-tool-choice", False) is (calls is not None)


def test_several_named_templates_are_read(tmp_path: Path) -> None:
    model(tmp_path, "qwen2", "")
    several = [{"name": "default", "template": "x"}, {"name": "tool_use", "template": JSON_CALLS}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert model_parsers.options_of(tmp_path)["tool-call-parser"] == "hermes"


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_model_that_cannot_be_read_gets_none(tmp_path: Path, content: str) -> None:
    assert model_parsers.options_of(tmp_path) == {}
    (tmp_path / "config.json").write_text(content)
    assert model_parsers.options_of(tmp_path) == {}


def test_the_tables_name_parsers_that_vllm_registers() -> None:
    assert {family.parser for family in model_parsers.TOOL_CALL} == TOOL_PARSERS
    assert {family.parser for family in model_parsers.REASONING} == REASONING_PARSERS


FOUND = {"tool-call-parser": "hermes", "enable-auto-tool-choice": True, "reasoning-parser": "qwen3"}


@cache
def read(path: str) -> Any:
    """A YAML file of the role, whose templates Ansible may evaluate."""
    return DataLoader().load_from_file(str(ROLE / path), trusted_as_template=True)


def parsers_of_engine(found: dict[str, Any], vllm_args: dict[str, Any] | None = None, **engine: Any) -> dict[str, Any]:
    """The options for parsers of an engine whose model is of the family `found`."""
    options = options_of_engine(
        vllm_args or {}, {"__vllm_parsers": {"stdout": json.dumps({"/srv/m": found})}}, **engine
    )
    return {name: value for name, value in options.items() if "parser" in name or "auto" in name}


def options_of_engine(vllm_args: dict[str, Any], registered: dict[str, Any], **engine: Any) -> dict[str, Any]:
    """The file that the role writes for an engine, after tasks have registered or set some variables."""
    (rendering,) = (task for task in read("tasks/configure.yml") if "__vllm_yml" in task.get("vars", {}))
    engine |= {"name": "one", "port": 8000, "served_model_name": "m"}
    known = read("defaults/main.yml") | read("vars/main.yml") | rendering["vars"]
    known |= {"name": "one", "stack_address": "10.0.0.3"}
    known |= {
        "__vllm_model_paths": {"one": "/srv/m"},
        "ansible_search_path": [str(ROLE)],
        "__vllm_planned": {"flags": {}, "plans": {}, "gpus": {}},
    }
    known |= registered | {"vllm_args": vllm_args, "__vllm_completed": entries(engine)}
    templar = Templar(loader=DataLoader(), variables=known)
    options: dict[str, Any] = yaml.safe_load(templar.template(trust_as_template("{{ __vllm_yml }}")))
    return options


def entries(engine: dict[str, Any]) -> dict[str, Any]:
    """What the action stack_engines registers."""
    engines = load("engine_entries").completed([engine])
    return {"engines": engines, "adapters": load("engine_entries").adapters_of(engines)}


NO_PARSERS = {"__vllm_parsers": {"stdout": '{"/srv/m": {}}'}}
TWO = [{"name": "sql", "model": "/srv/a/sql"}, {"name": "law", "model": "org/law", "revision": "0" * 40}]
PLACED = {"__vllm_adapter_directories": {"one:sql": "/srv/a/sql", "one:law": "/models/org--law@0"}}


@pytest.mark.parametrize(
    ("ranks", "reserved"), [((8, 8), 8), ((4, 2), 8), ((1, 1), 1), ((17, 64), 64), ((512, 9), 512)]
)
def test_an_engine_reserves_memory_for_its_adapters(ranks: tuple[int, int], reserved: int) -> None:
    read_ranks = {"__vllm_adapter_ranks": dict(zip(PLACED["__vllm_adapter_directories"].values(), ranks, strict=True))}
    options = options_of_engine({}, NO_PARSERS | PLACED | read_ranks, adapters=TWO)
    assert {name: value for name, value in options.items() if "lora" in name} == {
        "enable-lora": True,
        "max-loras": 4,
        "max-lora-rank": reserved,
        "lora-modules": ["sql=/srv/a/sql", "law=/models/org--law@0"],
    }


def test_what_an_operator_says_of_adapters_memory_wins_and_check_mode_needs_no_rank() -> None:
    args = {"max-loras": 1, "max-lora-rank": 128}
    options = options_of_engine(args, NO_PARSERS | PLACED | {"__vllm_adapter_ranks": {}}, adapters=TWO)
    assert args.items() <= options.items()


def test_an_engine_without_adapters_has_no_option_for_them() -> None:
    assert not [name for name in options_of_engine({}, NO_PARSERS) if "lora" in name]


def test_an_engine_has_what_was_found() -> None:
    assert parsers_of_engine(FOUND) == FOUND
    assert parsers_of_engine({}) == {}


@pytest.mark.parametrize("hyphen", ["-", "_"])
def test_what_an_operator_says_wins(hyphen: str) -> None:
    calls, reasoning = f"tool{hyphen}call{hyphen}parser", f"reasoning{hyphen}parser"
    own = {calls: "qwen3_xml"}
    assert parsers_of_engine(FOUND, args=own) == own | {"reasoning-parser": "qwen3"}
    assert parsers_of_engine(FOUND, vllm_args=own) == own | {"reasoning-parser": "qwen3"}
    assert parsers_of_engine(FOUND, args={calls: "none"}) == {"reasoning-parser": "qwen3"}
    without = {name: value for name, value in FOUND.items() if name != "reasoning-parser"}
    assert parsers_of_engine(FOUND, args={reasoning: "none"}) == without
    assert parsers_of_engine(FOUND, args={calls: "none", reasoning: "none"}) == {}


def test_another_chat_template_and_a_model_without_text_get_none() -> None:
    assert parsers_of_engine(FOUND, args={"chat-template": "/srv/t.jinja"}) == {}
    assert parsers_of_engine(FOUND, probe="embeddings") == {}


def test_adapters_are_fetched_again_after_a_stop_of_the_instance() -> None:
    (writing,) = (task for task in read("tasks/configure/release.yml") if "__vllm_origins" in task.get("vars", {}))
    engine = {"model": "org/m", "revision": "1" * 40, "adapters": TWO}
    known = read("vars/main.yml") | writing["vars"] | {"__vllm_completed": entries(engine)}
    content = Templar(loader=DataLoader(), variables=known).template(writing["ansible.builtin.copy"]["content"])
    assert json.loads(content) == [["org/m", "1" * 40], ["org/law", "0" * 40]]
