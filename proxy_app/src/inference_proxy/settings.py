"""A configuration in force: its two files, read and checked together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from inference_proxy.api.endpoints import Endpoints
from inference_proxy.config import Config, ConfigError, KeyConfig, load_config, load_keys
from inference_proxy.keys.authenticate import KeyRing
from inference_proxy.request.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class Settings:
    config: Config
    keys: KeyRing
    endpoints: Endpoints
    catalogue: Catalogue

    @classmethod
    def load(cls, path: Path) -> "Settings":
        """Read config.yml and its keys file. Raises ConfigError."""
        config = load_config(path)
        keys = load_keys(config.keys_file)
        _check_priorities(config, keys)
        return cls(config, KeyRing(keys), Endpoints(config), Catalogue(config))


def _check_priorities(config: Config, keys: tuple[KeyConfig, ...]) -> None:
    """Checked here, where both files are known. Raises ConfigError."""
    if strays := [key for key in keys if key.priority not in config.priorities]:
        where = f"{config.keys_file}: {{}}: priority {{!r}} is not one of the configuration's"
        raise ConfigError([where.format(key.name, key.priority) for key in strays])


class Part(Protocol):
    """A part that follows the configuration while requests run."""

    def reconfigure(self, settings: Settings) -> None: ...
