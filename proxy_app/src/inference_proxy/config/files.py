"""Reads config.yml and the keys file."""

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, TypeAdapter, ValidationError, model_validator

from inference_proxy.config.catalogue import ModelConfig, check_names
from inference_proxy.config.engines import EngineConfig
from inference_proxy.config.health import Health, Retries
from inference_proxy.config.keys import KeyConfig, KeyFile
from inference_proxy.config.limits import LimitsConfig
from inference_proxy.config.networks import Network
from inference_proxy.config.observing import AdminConfig, TracesConfig, UsageConfig
from inference_proxy.config.paths import CustomEndpoint, Version
from inference_proxy.config.priorities import DEFAULT_PRIORITIES, PriorityClass
from inference_proxy.config.queue import Queue
from inference_proxy.config.routing import Routing
from inference_proxy.config.timeouts import MEDIUM, Timeouts
from inference_proxy.config.types import AbsolutePath, ConfigError, Name, Strict, refuse_doubles


class Config(Strict):
    engines: tuple[EngineConfig, ...] = Field(default=(), description="All engines of the fleet.")
    keys_file: AbsolutePath = Field(description="The file with clients' keys: a list of KeyConfig.")
    drained_dir: AbsolutePath = Field(
        description="Where a file named as an engine's id takes that engine out; its content is the reason."
    )
    body_limit_bytes: PositiveInt = Field(default=16 * 1024 * 1024, description="Largest body of a request.")
    timeouts: Timeouts = Timeouts()
    routing: Routing = Routing()
    queue: Queue = Queue()
    health: Health = Health()
    retries: Retries = Retries()
    shutdown_s: PositiveFloat = Field(
        default=900, description="Seconds that requests may go on after SIGTERM."
    )
    models: tuple[ModelConfig, ...] = Field(
        default=(),
        description="Settings of models, such as aliases, fallbacks and defaults.",
    )
    limits: LimitsConfig = Field(
        default=LimitsConfig(), description="Limits of keys, and where they are counted."
    )
    priorities: dict[Name, PriorityClass] = Field(
        default=DEFAULT_PRIORITIES, description="Classes that keys belong to, by name; `default` is one."
    )
    isolate_prefix_cache: bool = Field(
        default=True,
        description="Tenants do not share the engines' prefix cache (a `cache_salt` for each owner).",
    )
    trusted_proxies: tuple[Network, ...] = Field(
        default=(),
        description="Peers, such as nginx, that are believed when they tell a client's address "
        "(X-Forwarded-For, X-Real-IP).",
    )
    api_versions: tuple[Version, ...] = Field(
        default=("v1",), min_length=1, description="Prefixes of the API's paths."
    )
    custom_endpoints: tuple[CustomEndpoint, ...] = Field(default=(), description="Operators' own paths.")
    admin: AdminConfig | None = None
    usage: UsageConfig | None = None
    traces: TracesConfig | None = None
    end_revoked: bool = Field(
        default=False, description="End what runs with a key as soon as the key is revoked."
    )
    log_content: bool = Field(
        default=False, description="Access lines hold prompts and completions too, up to 32 KiB of each."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        refuse_doubles("engine id", [engine.id for engine in self.engines])
        refuse_doubles("engine url", [engine.url for engine in self.engines])
        refuse_doubles("api version", self.api_versions)
        refuse_doubles("custom endpoint", [custom.path for custom in self.custom_endpoints])
        if "default" not in self.priorities:
            raise ValueError("priorities lacks 'default', the class of keys that name none")
        for engine in self.engines:
            if engine.pool is not None and engine.pool not in self.routing.pools:
                raise ValueError(
                    f"the pool of engine {engine.id!r}, {engine.pool!r}, is not in routing.pools"
                )
        for size in (MEDIUM, *(model.size for model in self.models)):
            if size not in self.timeouts.size_factors:
                raise ValueError(f"timeouts.size_factors lacks {size!r}, the size of a model")
        check_names(self.models, self.model_names())
        return self

    def model_names(self) -> frozenset[str]:
        """The models that engines serve, and those whose pools may be at zero."""
        served = {name for engine in self.engines for name in engine.models}
        return frozenset(served | self.cold_starts().keys())

    def cold_starts(self) -> dict[str, int]:
        """The models whose pools may be at zero, with the seconds that their first engine then takes."""
        return {model.name: model.cold_start_s for model in self.models if model.cold_start_s is not None}


_CONFIG = TypeAdapter(Config)
_KEYS = TypeAdapter(KeyFile)


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except yaml.YAMLError as error:
        # Only the position: the parser's own message quotes the line, which may contain secrets.
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError([f"{path}: not valid YAML{where}"]) from error


def _problems(path: Path, error: ValidationError) -> list[str]:
    lines = []
    for detail in error.errors(include_input=False, include_url=False):
        where = ".".join(str(part) for part in detail["loc"])
        lines.append(f"{path}: {where + ': ' if where else ''}{detail['msg']}")
    return lines


def load_config(path: Path) -> Config:
    """Read config.yml. Raises ConfigError with one line per problem."""
    try:
        return _CONFIG.validate_python(_read(path))
    except ValidationError as error:
        raise ConfigError(_problems(path, error)) from error


def load_keys(path: Path) -> tuple[KeyConfig, ...]:
    """Read the keys file: a list of KeyConfig. Raises ConfigError with one line per problem."""
    try:
        return _KEYS.validate_python({"keys": _read(path)}).keys
    except ValidationError as error:
        raise ConfigError(_problems(path, error)) from error


def list_drained(directory: Path) -> frozenset[str]:
    """Ids of the drained engines: one marker file each. A missing directory means none."""
    try:
        return frozenset(os.listdir(directory))
    except FileNotFoundError:
        return frozenset()
