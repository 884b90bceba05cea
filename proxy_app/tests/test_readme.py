"""The README's configuration is one that the program takes, and its tables have all that there is."""

import re
from pathlib import Path

import yaml

from inference_proxy.config import Config
from inference_proxy.endpoints import TABLE

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_configuration_is_a_good_one() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    document = yaml.safe_load(block)
    document["engines"].append({"id": "engine2:small", "url": "http://10.0.0.6:8000", "models": ["qwen3-4b"]})
    Config.model_validate(document)
    assert set(document) == set(Config.model_fields), "every section is shown"


def test_every_endpoint_is_listed() -> None:
    for row in TABLE:
        assert f"{'/v1' if row.versioned else ''}{row.path}`" in README


def test_every_error_code_is_listed() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "src/inference_proxy").glob("*.py"))
    codes = set(
        re.findall(
            r'(?:ApiError\(\s*\d+,|Unavailable\(|_unauthorized\(|wrong\(\s*\S+,)\s*"([a-z_]+)"', sources
        )
    )
    assert len(codes) > 15
    # The last never reaches a client: another model is asked then.
    assert {code for code in codes - {"internal_error", "engine_full"} if f"`{code}`" not in README} == set()
