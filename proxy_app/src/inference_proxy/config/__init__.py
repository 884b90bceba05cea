"""The proxy's configuration: config.yml and the keys file that it names. One module per section."""

from inference_proxy.config.catalogue import DeprecatedName, ModelConfig
from inference_proxy.config.engines import EngineConfig
from inference_proxy.config.files import Config, list_drained, load_config, load_keys
from inference_proxy.config.health import Health, Retries
from inference_proxy.config.keys import KeyConfig
from inference_proxy.config.limits import (
    Counted,
    KeyLimits,
    LimitsConfig,
    RateLimits,
    Span,
    StoreConfig,
    rate_limits,
)
from inference_proxy.config.networks import IpAddress, IpNetwork
from inference_proxy.config.observing import AdminConfig, TracesConfig, UsageConfig
from inference_proxy.config.paths import (
    AUDIO,
    CATALOGUE,
    GENERATION,
    POOLING,
    UTILITY,
    CustomEndpoint,
    EndpointClass,
    FixedAnswer,
)
from inference_proxy.config.priorities import PriorityClass
from inference_proxy.config.queue import Queue
from inference_proxy.config.routing import Pool, Routing
from inference_proxy.config.timeouts import Timeouts, TotalLimits
from inference_proxy.config.types import ConfigError

__all__ = [
    "AUDIO",
    "CATALOGUE",
    "GENERATION",
    "POOLING",
    "UTILITY",
    "AdminConfig",
    "Config",
    "ConfigError",
    "Counted",
    "CustomEndpoint",
    "DeprecatedName",
    "EndpointClass",
    "EngineConfig",
    "FixedAnswer",
    "Health",
    "IpAddress",
    "IpNetwork",
    "KeyConfig",
    "KeyLimits",
    "LimitsConfig",
    "ModelConfig",
    "Pool",
    "PriorityClass",
    "Queue",
    "RateLimits",
    "Retries",
    "Routing",
    "Span",
    "StoreConfig",
    "Timeouts",
    "TotalLimits",
    "TracesConfig",
    "UsageConfig",
    "list_drained",
    "load_config",
    "load_keys",
    "rate_limits",
]
