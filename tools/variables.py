"""Generate the tables of variables (the roles' READMEs and docs/variables.md) from the argument specs, the schema by
which preflight checks variables from the proxy's configuration classes, and nginx's routes from the proxy's endpoints.

With --check nothing is written; the exit status is 1 if a file is out of date.
`make docs` runs it with the proxy's package on Python's path.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from inference_proxy import config
from inference_proxy.api.endpoints import TABLE

ROOT = Path(__file__).resolve().parents[1]
PREFLIGHT = ROOT / "plugins" / "plugin_utils" / "preflight"
FLEET = ROOT / "plugins" / "plugin_utils" / "fleet" / "fleet.yml"
ROLES = ["vllm", "proxy", "nginx_certbot", "nvidia_drivers"]
BEGIN, END = "<!-- variables:begin -->", "<!-- variables:end -->"


def options(path: Path, entry: str) -> dict[str, Any]:
    """The variables of an argument spec."""
    found: dict[str, Any] = yaml.safe_load(path.read_text())["argument_specs"][entry]["options"]
    return found


def table(variables: dict[str, Any]) -> str:
    """A Markdown table with one row per variable."""
    rows = ["| Variable | Type | Default | Description |", "|---|---|---|---|"]
    for name, spec in variables.items():
        words = spec["description"]
        text = " ".join([words] if isinstance(words, str) else words)
        if spec.get("choices"):
            text += f" One of {', '.join(f'`{choice}`' for choice in spec['choices'])}."
        default = "required" if spec.get("required") else f"`{_default(spec)}`" if "default" in spec else "-"
        kind = f"list of {spec['elements']}" if spec.get("elements") else spec.get("type", "str")
        rows.append(f"| `{name}` | {kind} | {_cell(default)} | {_cell(text)} |")
    return "\n".join(rows)


# Variables and the section of the proxy's configuration that is rendered from each.
PROXY_SECTIONS = {
    "proxy_api_versions": "api_versions",
    "proxy_custom_endpoints": "custom_endpoints",
    "proxy_health": "health",
    "proxy_limits": "limits",
    "proxy_models": "models",
    "proxy_priorities": "priorities",
    "proxy_queue": "queue",
    "proxy_retries": "retries",
    "proxy_routing": "routing",
    "proxy_timeouts": "timeouts",
}


def proxy_schema() -> str:
    """The schemas of all variables that are rendered into the proxy's files, with the definitions that they use."""
    whole, keys = config.Config.model_json_schema(), config.KeyConfig.model_json_schema()
    definitions = {**whole["$defs"], **keys.pop("$defs")}
    variables = {name: whole["properties"][section] for name, section in PROXY_SECTIONS.items()}
    # An operator may write the key itself: the role renders its hash. The store has variables of its own.
    keys["properties"]["key"] = {"type": "string"}
    keys["required"] = ["name"]
    variables["proxy_keys"] = {"type": "array", "items": keys}
    del definitions["LimitsConfig"]["properties"]["store"]
    return json.dumps(_bare({"variables": variables, "definitions": definitions}), indent=1, sort_keys=True) + "\n"


def _bare(schema: Any) -> Any:
    """The schema without titles, descriptions and defaults, none of which preflight uses."""
    if isinstance(schema, list):
        return [_bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: {key: _bare(part) for key, part in value.items()} if name == "properties" else _bare(value)
        for name, value in schema.items()
        if name not in ("title", "description", "default")
    }


ROUTES = """\
---
# Written by `make docs` from the proxy's table of endpoints (proxy_app/src/inference_proxy/api/endpoints.py); edit that.
"""


def nginx_routes() -> str:
    """The variables of nginx's routes: the proxy's endpoints, those with a version prefix apart."""
    # nginx's 404 suggests the first path that ends the requested one: /chat/completions goes before /completions.
    rows = sorted(TABLE, key=lambda row: -row.path.count("/"))
    lines = [ROUTES + "# Each path follows a version, such as /v1.", "__nginx_certbot_routes:"]
    lines += [f"  - {{path: {row.path}, class: {row.kind}}}" for row in rows if row.versioned]
    lines += ["# These have no version.", "__nginx_certbot_unversioned_routes:"]
    lines += [f"  - {{path: {row.path}, class: {row.kind}}}" for row in rows if not row.versioned]
    # The proxy answers it itself, without an engine, so it is not in the table.
    lines.append("  - {path: /health/live, class: catalogue}")
    return "\n".join(lines) + "\n"


def _default(spec: dict[str, Any]) -> str:
    value = spec["default"]
    return value if isinstance(value, str) and value else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").strip()


def pages() -> dict[Path, str]:
    """Every generated file with its contents."""
    found = {}
    reference = [
        "# Variables",
        "",
        "Written by `make docs` from the argument specs of the roles, for all tiers from",
        "`plugins/plugin_utils/preflight/stack_variables.yml`, and for fleets from `plugins/plugin_utils/fleet/fleet.yml`; edit those.",
        "",
    ]
    stack = options(PREFLIGHT / "stack_variables.yml", "stack")
    reference += ["## All tiers", "", table(stack), ""]
    for role in ROLES:
        path = ROOT / "roles" / role / "README.md"
        rows = table(options(ROOT / "roles" / role / "meta" / "argument_specs.yml", "main"))
        text = path.read_text()
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        found[path] = f"{before}{BEGIN}\n{rows}\n{END}{after}"
        reference += [f"## {role}", "", rows, ""]
    reference += ["## A fleet: an entry of stack_fleets", "", table(options(FLEET, "fleet")), ""]
    reference += ["## An entry of a fleet's hosts", "", table(options(FLEET, "hosts")), ""]
    for name in ("auto_scaling", "hours", "join"):
        reference += [f"## {name} of such an entry", "", table(options(FLEET, name)), ""]
    found[PREFLIGHT / "proxy_schema.json"] = proxy_schema()
    found[ROOT / "roles" / "nginx_certbot" / "vars" / "main" / "routes.yml"] = nginx_routes()
    found[ROOT / "docs" / "variables.md"] = "\n".join(reference)
    return found


def main() -> int:
    """Write the files, or with --check name those that are out of date."""
    stale = [(path, text) for path, text in pages().items() if not path.exists() or path.read_text() != text]
    for path, text in stale:
        if "--check" in sys.argv[1:]:
            print(f"{path.relative_to(ROOT)} is out of date: run `make docs`", file=sys.stderr)
        else:
            path.write_text(text)
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    raise SystemExit(main())
