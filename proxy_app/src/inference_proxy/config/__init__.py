"""The files that the proxy lives by: config.yml and the keys file that it names. One module a section."""

from .catalogue import DeprecatedName, ModelConfig
from .engines import EngineConfig
from .files import Config, list_drained, load_config, load_keys
from .health import Health, Retries
from .keys import KeyConfig
from .limits import KeyLimits, Limits, LimitsConfig, StoreConfig
from .networks import IpAddress, IpNetwork
from .observing import AdminConfig, TracesConfig, UsageConfig
from .paths import AUDIO, CATALOGUE, GENERATION, POOLING, UTILITY, Answer, CustomEndpoint, EndpointClass
from .priorities import PriorityClass
from .queue import Queue
from .routing import Pool, Routing
from .timeouts import Timeouts, TotalLimits
from .types import ConfigError

__all__ = [
    "AUDIO",
    "CATALOGUE",
    "GENERATION",
    "POOLING",
    "UTILITY",
    "AdminConfig",
    "Answer",
    "Config",
    "ConfigError",
    "CustomEndpoint",
    "DeprecatedName",
    "EndpointClass",
    "EngineConfig",
    "Health",
    "IpAddress",
    "IpNetwork",
    "KeyConfig",
    "KeyLimits",
    "Limits",
    "LimitsConfig",
    "ModelConfig",
    "Pool",
    "PriorityClass",
    "Queue",
    "Retries",
    "Routing",
    "StoreConfig",
    "Timeouts",
    "TotalLimits",
    "TracesConfig",
    "UsageConfig",
    "list_drained",
    "load_config",
    "load_keys",
]
