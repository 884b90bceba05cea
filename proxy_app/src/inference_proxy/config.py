"""The files that the proxy lives by: config.yml and the keys file that it names."""

import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)


class ConfigError(Exception):
    """A file that cannot be used. `problems` are lines, each: file, where in it, what is wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def _origin(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise ValueError("write scheme, host and port only, such as http://10.0.0.5:8000")
    if parts.query or parts.fragment or parts.username:
        raise ValueError("write scheme, host and port only, without credentials or a query")
    return url.rstrip("/")


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("write an absolute path")
    return path


Name = Annotated[str, Field(min_length=1, max_length=256)]
# An engine's id is also the name of its marker file in drained_dir.
EngineId = Annotated[str, Field(pattern=r"^[^/\s]+$", max_length=255)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineConfig(_Strict):
    id: EngineId
    url: Annotated[str, AfterValidator(_origin)]
    models: Annotated[tuple[Name, ...], Field(min_length=1)]


class Timeouts(_Strict):
    """Seconds. Four clocks: connecting, to the first byte, between two chunks, and the whole request."""

    connect_s: PositiveFloat = 5
    first_byte_s: PositiveFloat = 600
    between_chunks_s: PositiveFloat = 120
    total_s: PositiveFloat = 3600


class Config(_Strict):
    engines: tuple[EngineConfig, ...] = ()
    keys_file: AbsolutePath
    drained_dir: AbsolutePath
    body_limit_bytes: PositiveInt = 16 * 1024 * 1024
    timeouts: Timeouts = Timeouts()
    shutdown_s: PositiveFloat = 900

    @model_validator(mode="after")
    def _no_engine_twice(self) -> "Config":
        _refuse_doubles("engine id", [engine.id for engine in self.engines])
        _refuse_doubles("engine url", [engine.url for engine in self.engines])
        return self


class KeyConfig(_Strict):
    name: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    models: tuple[Name, ...] = ()


class _Keys(_Strict):
    keys: tuple[KeyConfig, ...]

    @model_validator(mode="after")
    def _no_key_twice(self) -> "_Keys":
        _refuse_doubles("key name", [key.name for key in self.keys])
        owners: dict[str, str] = {}
        for key in self.keys:
            if (other := owners.setdefault(key.sha256, key.name)) != key.name:
                raise ValueError(f"{other!r} and {key.name!r} are the same key: a key has one name")
        return self


_CONFIG = TypeAdapter(Config)
_KEYS = TypeAdapter(_Keys)


def _refuse_doubles(what: str, values: list[str]) -> None:
    if doubles := sorted({value for value in values if values.count(value) > 1}):
        raise ValueError(f"{what} given more than once: {', '.join(doubles)}")


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except yaml.YAMLError as error:
        # Only the position: the parser's own message quotes the line, which may hold what must not be logged.
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
    """Read config.yml. Raises ConfigError with one line a problem."""
    try:
        return _CONFIG.validate_python(_read(path))
    except ValidationError as error:
        raise ConfigError(_problems(path, error)) from error


def load_keys(path: Path) -> tuple[KeyConfig, ...]:
    """Read the keys file: a list of {name, sha256, models}. Raises ConfigError with one line a problem."""
    try:
        return _KEYS.validate_python({"keys": _read(path)}).keys
    except ValidationError as error:
        raise ConfigError(_problems(path, error)) from error


def list_drained(directory: Path) -> frozenset[str]:
    """Ids of the engines that are taken out: one marker file each. No directory means none."""
    try:
        return frozenset(os.listdir(directory))
    except FileNotFoundError:
        return frozenset()
