"""What the proxy knows at this moment. Requests take one `settings` and keep it to their end."""

from dataclasses import dataclass
from pathlib import Path

from .authenticate import KeyRing
from .catalogue import Catalogue
from .config import Config, ConfigError, KeyConfig, list_drained, load_config, load_keys
from .endpoints import Endpoints
from .fleet import Fleet
from .guard import Guard, Reason
from .queue import Queues


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
    """Only here are both files known. Raises ConfigError."""
    if strays := [key for key in keys if key.priority not in config.priorities]:
        where = f"{config.keys_file}: {{}}: priority {{!r}} is not one of the configuration's"
        raise ConfigError([where.format(key.name, key.priority) for key in strays])


class State:
    def __init__(self, settings: Settings) -> None:
        self.fleet = Fleet()
        self.queues = Queues(self.fleet)
        self.guards: set[Guard] = set()
        self.stopping = False
        self.config_error: str | None = None
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        self.settings = settings
        self.fleet.configure(settings.config)
        self.look_for_drained()

    def look_for_drained(self) -> None:
        self.fleet.set_drained(list_drained(self.settings.config.drained_dir))

    def interrupt_all(self) -> None:
        """End what is still running, each request with an answer that says so."""
        for guard in list(self.guards):
            guard.interrupt(Reason.SHUTDOWN)

    def ready(self) -> bool:
        return not self.stopping and any(engine.serves for engine in self.fleet.engines)
