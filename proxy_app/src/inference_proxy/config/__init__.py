"""The files that the proxy lives by: config.yml and the keys file that it names. One module a section."""

from .catalogue import DeprecatedName, ModelConfig
from .engines import EngineConfig
from .files import Config, list_drained, load_config, load_keys
from .keys import KeyConfig
from .observing import AdminConfig, TracesConfig, UsageConfig
from .paths import Answer, CustomEndpoint, EndpointClass
from .priorities import PriorityClass
from .timeouts import Timeouts
from .types import ConfigError

__all__ = [
    "AdminConfig",
    "Answer",
    "Config",
    "ConfigError",
    "CustomEndpoint",
    "DeprecatedName",
    "EndpointClass",
    "EngineConfig",
    "KeyConfig",
    "ModelConfig",
    "PriorityClass",
    "Timeouts",
    "TracesConfig",
    "UsageConfig",
    "list_drained",
    "load_config",
    "load_keys",
]
