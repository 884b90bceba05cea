"""Write the tables of role variables, in the roles' READMEs and docs/variables.md, from the argument specs.

With --check nothing is written, and the exit status says whether something would be.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
ROLES = ["vllm", "proxy", "nginx_certbot", "nvidia_drivers"]
BEGIN, END = "<!-- variables:begin -->", "<!-- variables:end -->"


def options(role: str) -> dict[str, Any]:
    """The role's public variables, from its argument specs."""
    data = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text())
    found: dict[str, Any] = data["argument_specs"]["main"]["options"]
    return found


def table(role: str) -> str:
    """A Markdown table: a row a variable."""
    rows = ["| Variable | Type | Default | Description |", "|---|---|---|---|"]
    for name, spec in options(role).items():
        words = spec["description"]
        text = " ".join([words] if isinstance(words, str) else words)
        if spec.get("choices"):
            text += f" One of {', '.join(f'`{choice}`' for choice in spec['choices'])}."
        default = "required" if spec.get("required") else f"`{_default(spec)}`" if "default" in spec else "-"
        kind = f"list of {spec['elements']}" if spec.get("elements") else spec.get("type", "str")
        rows.append(f"| `{name}` | {kind} | {_cell(default)} | {_cell(text)} |")
    return "\n".join(rows)


def _default(spec: dict[str, Any]) -> str:
    value = spec["default"]
    return value if isinstance(value, str) and value else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").strip()


def pages() -> dict[Path, str]:
    """Every generated page with what it should hold."""
    found = {}
    reference = ["# Variables", "", "Written by `make docs` from the roles' argument specs; edit those.", ""]
    for role in ROLES:
        path = ROOT / "roles" / role / "README.md"
        text = path.read_text()
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        found[path] = f"{before}{BEGIN}\n{table(role)}\n{END}{after}"
        reference += [f"## {role}", "", table(role), ""]
    found[ROOT / "docs" / "variables.md"] = "\n".join(reference)
    return found


def main() -> int:
    """Write the pages, or with --check name those that are out of date."""
    stale = [(path, text) for path, text in pages().items() if not path.exists() or path.read_text() != text]
    for path, text in stale:
        if "--check" in sys.argv[1:]:
            print(f"{path.relative_to(ROOT)} is out of date: run `make docs`", file=sys.stderr)
        else:
            path.write_text(text)
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    raise SystemExit(main())
