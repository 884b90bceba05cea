"""The application accepts every setting that role proxy offers."""

from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from inference_proxy.api.endpoints import TABLE, BodyKind
from inference_proxy.config import EngineConfig, Health, Queue, Retries, Routing, Timeouts
from inference_proxy.config.paths import FORMS

ROLES = Path(__file__).parents[2] / "roles"
PROXY = yaml.safe_load((ROLES / "proxy/meta/argument_specs.yml").read_text())["argument_specs"]["main"][
    "options"
]
VLLM = yaml.safe_load((ROLES / "vllm/meta/argument_specs.yml").read_text())["argument_specs"]["main"][
    "options"
]
NAMES: dict[Any, str] = {int: "int", float: "float", str: "str"}


def kind(annotation: Any) -> str:
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return NAMES.get(annotation, "dict")


def same(options: dict[str, Any], model: type[BaseModel]) -> None:
    assert {name: option["type"] for name, option in options.items()} == {
        name: kind(field.annotation) for name, field in model.model_fields.items()
    }
    for name, option in options.items():
        annotation = model.model_fields[name].annotation
        if "options" in option and isinstance(annotation, type) and issubclass(annotation, BaseModel):
            same(option["options"], annotation)


@pytest.mark.parametrize(
    ("variable", "model"),
    [
        ("proxy_timeouts", Timeouts),
        ("proxy_routing", Routing),
        ("proxy_queue", Queue),
        ("proxy_health", Health),
        ("proxy_retries", Retries),
    ],
)
def test_a_section_has_the_same_fields_in_the_role(variable: str, model: type[BaseModel]) -> None:
    same(PROXY[variable]["options"], model)


def test_what_an_engine_says_to_proxies_is_in_its_roles_specs() -> None:
    options = VLLM["vllm_engines"]["options"]
    # The role proxy says `optional` of the second engine that beside_port brings.
    shared = set(EngineConfig.model_fields) - {"id", "url", "models", "optional"}
    assert shared <= set(options)
    for name in shared - {"probe"}:
        assert options[name]["type"] == kind(EngineConfig.model_fields[name].annotation)


def test_nginx_passes_what_the_proxy_answers() -> None:
    known = yaml.safe_load((ROLES / "nginx_certbot/vars/main/routes.yml").read_text())
    routes = {
        versioned: {(route["path"], route["class"]) for route in known[f"__nginx_certbot_{name}"]}
        for versioned, name in ((True, "routes"), (False, "unversioned_routes"))
    }
    for versioned, own in ((True, set()), (False, {("/health/live", "catalogue")})):
        assert routes[versioned] == own | {
            (row.path, str(row.kind)) for row in TABLE if row.versioned is versioned
        }


def test_nginx_takes_the_methods_that_the_proxy_takes() -> None:
    classes = yaml.safe_load((ROLES / "nginx_certbot/vars/main/main.yml").read_text())[
        "__nginx_certbot_classes"
    ]
    for row in TABLE:
        assert set(classes[row.kind]["methods"].split("|")) == set(row.methods), row.path


def test_the_configuration_knows_which_endpoints_take_forms() -> None:
    assert {f"/v1{row.path}" for row in TABLE if row.body is BodyKind.MULTIPART} == FORMS
