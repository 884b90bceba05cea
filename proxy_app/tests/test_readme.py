"""The README's configuration is valid, and its tables are complete."""

import re
from pathlib import Path

import yaml

from inference_proxy.api.endpoints import TABLE
from inference_proxy.config import Config, KeyConfig, LimitsConfig, RateLimits

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
# In this order: config.yml, the keys file, section `limits`. Other tests check those that follow.
CONFIG, KEYS, LIMITS, *_ = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


def test_the_configuration_is_a_good_one() -> None:
    document = yaml.safe_load(CONFIG)
    document["engines"].append({"id": "engine2:small", "url": "http://10.0.0.6:8000", "models": ["qwen3-4b"]})
    Config.model_validate(document)
    assert set(document) == set(Config.model_fields), "every section is shown"


def test_the_key_is_a_good_one() -> None:
    (key,) = yaml.safe_load(KEYS)
    KeyConfig.model_validate(key | {"sha256": "0" * 64})
    assert set(key) == set(KeyConfig.model_fields)


def test_the_limits_are_good_ones() -> None:
    limits = yaml.safe_load(LIMITS)["limits"]
    LimitsConfig.model_validate(limits)
    assert set(limits) == set(LimitsConfig.model_fields)
    assert set(limits["default"]) == set(RateLimits.model_fields)


def test_every_endpoint_is_listed() -> None:
    for row in TABLE:
        assert f"{'/v1' if row.versioned else ''}{row.path}`" in README


def test_every_error_code_is_listed() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "src/inference_proxy").rglob("*.py"))
    codes = set(
        re.findall(
            r'(?:ApiError\(\s*\d+,|Unavailable\(|_unauthorized\(|wrong\(\s*\S+,)\s*"([a-z_]+)"', sources
        )
    )
    assert len(codes) > 15
    # The last never reaches a client: a fallback model is used instead.
    assert {
        code for code in codes - {"internal_error", "model_saturated"} if f"`{code}`" not in README
    } == set()
