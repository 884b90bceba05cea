"""The files that the role vllm writes for an engine, rendered by Ansible from the role's own variables."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from helpers.vllm_role import found

ROLE = Path(__file__).resolve().parents[2] / "roles" / "vllm"


@cache
def read(path: str) -> Any:
    """A YAML file of the role, whose templates Ansible may evaluate."""
    return DataLoader().load_from_file(str(ROLE / path), trusted_as_template=True)


def engine_options(variables: dict[str, Any], **engine: Any) -> dict[str, Any]:
    """The options with which an engine named `one` is started."""
    (rendering,) = (task for task in read("tasks/configure.yml") if "__vllm_yml" in task.get("vars", {}))
    engine |= {"name": "one", "port": 8000, "served_model_name": "m"}
    known = read("defaults/main.yml") | read("vars/main.yml") | rendering["vars"]
    known |= {"name": "one", "stack_address": "10.0.0.3", "ansible_search_path": [str(ROLE)]}
    known |= found([engine], {"one": "/srv/m"})
    templar = Templar(loader=DataLoader(), variables=known | variables)
    options: dict[str, Any] = yaml.safe_load(templar.template(trust_as_template("{{ __vllm_yml }}")))
    return options


def with_row() -> dict[str, Any]:
    """The role's variables as if one more default option had been added to its table."""
    return {"__vllm_default_args": read("vars/main.yml")["__vllm_default_args"] | {"max-num-seqs": 256}}


def test_an_engine_has_the_defaults_and_what_its_inventory_says() -> None:
    options = engine_options({})
    assert options["model"] == "/srv/m"
    assert options["served-model-name"] == "m"
    assert (options["host"], options["port"]) == ("10.0.0.3", 8000)
    assert set(read("vars/main.yml")["__vllm_default_args"]) <= set(options)


def test_a_default_option_is_one_row() -> None:
    before, after = engine_options({}), engine_options(with_row())
    assert after == before | {"max-num-seqs": 256}


def test_an_operators_option_wins_over_a_default_and_an_engines_own_over_both() -> None:
    assert engine_options(with_row() | {"vllm_args": {"max-num-seqs": 8}})["max-num-seqs"] == 8
    own = engine_options(with_row() | {"vllm_args": {"max-num-seqs": 8}}, args={"max-num-seqs": 4})
    assert own["max-num-seqs"] == 4


def test_each_option_that_vllm_refuses_is_a_line_of_the_message() -> None:
    (stop,) = (
        task["ansible.builtin.assert"]
        for task in read("tasks/configure/release.yml")
        if "__vllm_option_check" in str(task.get("ansible.builtin.assert"))
    )
    path = "/opt/vllm/releases/1"
    said = f"{path}/engines/one.yml: vLLM has no option 'a'\n{path}/engines/two.yml: vLLM has no option 'b'"
    known = {"__vllm_option_check": {"stderr": said}, "__vllm_release_path": path}
    known |= {"vllm_version": "0.33.0", "inventory_hostname": "engine1"}
    lines = Templar(loader=DataLoader(), variables=known).template(stop["fail_msg"]).splitlines()
    assert lines[1:] == ["one.yml: vLLM has no option 'a'", "two.yml: vLLM has no option 'b'"]
    assert "refuses options of engines on engine1" in lines[0]


def test_what_comes_from_elsewhere_and_is_not_streamed_is_downloaded() -> None:
    engines = [
        {"name": "hub", "model": "a/b"},
        {"name": "bucket", "model": "s3://a/b", "stream": False},
        {"name": "stream", "model": "s3://a/c", "stream": True},
        {"name": "disk", "model": "/srv/m"},
    ]
    known = read("vars/main.yml") | {"__vllm_completed": {"engines": engines, "adapters": []}}
    fetched = Templar(loader=DataLoader(), variables=known).template(known["__vllm_fetched_engines"])
    assert [engine["name"] for engine in fetched] == ["hub", "bucket"]


def rendered(name: str, expression: str, **engine: Any) -> Any:
    """An expression of the task that renders the engines' files, for the engine `one`, or the second one beside it."""
    (rendering,) = (task for task in read("tasks/configure.yml") if "__vllm_yml" in task.get("vars", {}))
    known = read("defaults/main.yml") | read("vars/main.yml") | rendering["vars"]
    known |= {"name": name, "stack_address": "10.0.0.3", "ansible_search_path": [str(ROLE)], "role_path": str(ROLE)}
    known |= found([{"name": "one", "model": "/srv/m", **engine}], {"one": "/srv/m"})
    return Templar(loader=DataLoader(), variables=known).template(trust_as_template(f"{{{{ {expression} }}}}"))


SECOND: dict[str, Any] = {"beside_port": 8100, "gpus": [1], "args": {"gpu-memory-utilization": 0.45}}


def test_a_second_engine_differs_in_its_port_and_its_link_only() -> None:
    own, second = (yaml.safe_load(rendered(name, "__vllm_yml", **SECOND)) for name in ("one", "one.beside"))
    assert second == own | {"port": 8100}
    own, second = (rendered(name, "__vllm_cache_environment ~ __vllm_env", **SECOND) for name in ("one", "one.beside"))
    # The same cache of compiled graphs, too.
    assert second == own.replace("/opt/vllm/current/", "/opt/vllm/beside/")
    assert second != own
    own, second = (rendered(name, "__vllm_files.probe", **SECOND) for name in ("one", "one.beside"))
    assert second == own | {"url": "http://10.0.0.3:8100", "gpu_share": 0.45}


def test_a_beside_port_changes_nothing_of_the_engine_itself() -> None:
    without = {key: value for key, value in SECOND.items() if key != "beside_port"}
    for expression in ("__vllm_yml", "__vllm_env", "__vllm_files.probe"):
        assert rendered("one", expression, **SECOND) == rendered("one", expression, **without)


@pytest.mark.parametrize(("port", "names"), [(8100, ["one.beside"]), (None, []), ("", [])])
def test_only_an_engine_with_a_beside_port_has_a_second_one(port: Any, names: list[str]) -> None:
    assert rendered("one", "__vllm_beside_names", beside_port=port) == names


def test_the_unit_of_a_second_engine_runs_another_link() -> None:
    known = {"vllm_instance_store": "", "vllm_shutdown_timeout_s": 120, "role_path": str(ROLE)}
    known |= read("vars/main.yml") | {"ansible_search_path": [str(ROLE)]}
    own, second = (
        Templar(loader=DataLoader(), variables=known).template(trust_as_template(f"{{{{ {name} }}}}"))
        for name in ("__vllm_unit", "__vllm_beside_unit")
    )
    assert "/opt/vllm/current" in own
    assert "/opt/vllm/current" not in second
    assert "ExecStart=/opt/vllm/beside/venv/bin/vllm serve --config /opt/vllm/beside/engines/%i.yml" in second
