"""The proxies' settings of models."""

from __future__ import annotations

from typing import Any

import pytest
from preflight_inventory import ENGINE, found, problems


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([{"name": "m", "aliases": ["gpt-4o"], "deprecated": [{"name": "old", "since": "2026-01-01"}]}], None),
        ([{"name": "M"}], "proxy_models has 'M', which no engine serves: did you mean 'm'?"),
        ([{"name": "m", "aliases": ["a", "a"]}], "gives the name 'a' to 'm' and to 'm'"),
        ([{"name": "m", "fallback": "n"}], "cannot fall back on 'n'"),
        ([{"name": "m", "fallback": "m"}], "cannot fall back on 'm'"),
        ([{"name": "m"}, {"name": "m"}], "gives the name 'm'"),
    ],
)
def test_names_of_models(inventory: dict[str, Any], models: list[dict[str, Any]], said: str | None) -> None:
    inventory["hostvars"]["api1"]["proxy_models"] = models
    found = problems(inventory)
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_a_ring_of_fallbacks_is_named() -> None:
    engines = [
        ENGINE | {"name": name, "served_model_name": name, "port": 8000 + at, "gpus": [at]}
        for at, name in enumerate("abc")
    ]
    ring = [{"name": one, "fallback": other} for one, other in ("ab", "bc", "ca")]
    (line,) = found(vllm_engines=engines, proxy_models=ring)
    assert "a -> b -> c -> a" in line
    assert found(vllm_engines=engines, proxy_models=ring[:2]) == []
