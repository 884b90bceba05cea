"""Jobs, settings and fleets without a server around them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inference_proxy.api.endpoints import Endpoints
from inference_proxy.api.numbers import MOST_CONTEXT_TOKENS
from inference_proxy.config import Config, KeyConfig, ModelConfig
from inference_proxy.engines.fleet import Fleet
from inference_proxy.keys.authenticate import Key, KeyRing
from inference_proxy.request.catalogue import Catalogue
from inference_proxy.request.job import Job, prepare
from inference_proxy.request.validate import validate
from inference_proxy.settings import Settings


def a_config(*engines: dict[str, Any], **settings: Any) -> Config:
    entries = [
        {"id": f"host{number}:e", "url": f"http://10.0.0.{number}:8000", "models": ["big"]} | engine
        for number, engine in enumerate(engines, 1)
    ]
    paths = {"keys_file": Path("/keys"), "drained_dir": Path("/drained")}
    return Config.model_validate(paths | {"engines": entries} | settings)


def a_settings(*engines: dict[str, Any], keys: tuple[KeyConfig, ...] = (), **settings: Any) -> Settings:
    config = a_config(*engines, **settings)
    return Settings(config, KeyRing(keys), Endpoints(config), Catalogue(config))


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def a_fleet(*engines: dict[str, Any], clock: Callable[[], float] | None = None, **settings: Any) -> Fleet:
    """A fleet whose engines are all serving."""
    fleet = Fleet(clock or Clock())
    fleet.reconfigure(a_settings(*engines, **settings))
    for engine in fleet.engines:
        engine.met = engine.reachable = True
    return fleet


def a_job(
    path: str = "/chat/completions",
    *,
    owner: str = "alice",
    priority: str = "default",
    session: str | None = None,
    config: Config | None = None,
    context_tokens: int = MOST_CONTEXT_TOKENS,
    raw: str = "",
    **body: Any,
) -> Job:
    config = config or a_config({})
    endpoints = Endpoints(config)
    endpoint = endpoints.find(f"/v1{path}") or endpoints.find(path)
    assert endpoint is not None
    key = Key("k", "0" * 64, frozenset(), owner, priority, f"salt of {owner}")
    headers = {b"content-type": b"application/json"} | (
        {b"x-session-id": session.encode()} if session else {}
    )
    text = '{"model":"big",' + raw[1:] if raw else json.dumps({"model": "big"} | body)
    asked = validate(endpoint, key, headers, text.encode())
    model = next((m for m in config.models if m.name == asked.model), ModelConfig(name=asked.model))
    return prepare(asked, model, config, headers, "id", context_tokens)
