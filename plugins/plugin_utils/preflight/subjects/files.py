"""Files of variables: those that Ansible does not read, and secrets that are not encrypted."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml
from ansible.parsing.dataloader import DataLoader

from ..directories import read_directories
from ..inventory import Inventory
from ..misspelt import is_mistyped

_EXTENSIONS = (".yml", ".yaml", ".json")
# The least similarity of an extension and its misspelling. Nobody expects .bak or .md to be read.
_ALIKE = 0.6
_SECRET = re.compile(
    r"(^|_)(?<!public_)(key|pass|passphrase|passwd|password|secret|token)s?$",
    re.IGNORECASE,
)
_SAMPLE = re.compile(r"(^|[._-])(dist|example|sample|template|tmpl)s?([._-]|$)", re.IGNORECASE)
# Names that say where a secret is; their values are not secrets.
_PLACE = re.compile(r"\w+://\S+|(/[\w.-]+){2,}")
# Groups that each inventory has, or whose absence another check reports.
_ALWAYS = {"all", "ungrouped", "vllm", "proxy", "nginx"}


def check_files(inventory: Inventory) -> Iterator[str]:
    """Reports files that Ansible silently ignores: with another extension, with the name of no group or host, or with
    the same name as another."""
    known = {name for variables in inventory.options.values() for name in variables}
    loader = DataLoader()
    # The controller is a host even if no inventory names it.
    names = {"group_vars": set(inventory.groups) | _ALWAYS, "host_vars": inventory.everyone() | {"localhost"}}
    for root, kind in sorted(read_directories(inventory).items()):
        read = {Path(found) for name in names[kind] for found in loader.find_vars_files(str(root), name)}
        for path in _files(root):
            if path not in read and (reason := _why_unread(root, kind, path, names, known)):
                yield f"{path} is not read{reason}"


def _why_unread(root: Path, kind: str, path: Path, names: Mapping[str, set[str]], known: set[str]) -> str:
    """Why Ansible does not read a file, as the rest of a sentence; "" if it is probably not meant to be read."""
    inside = path.relative_to(root).parts
    base, extension = os.path.splitext(path.name)
    whose = inside[0] if len(inside) > 1 else base
    if extension and extension not in _EXTENSIONS:
        if extension != ".txt" and not difflib.get_close_matches(extension.lower(), _EXTENSIONS, 1, _ALIKE):
            return ""
        right = path.with_suffix("") if base.endswith(_EXTENSIONS) else path.with_suffix(".yml")
        return f", since its name ends in {extension}: rename it to {right}" if _sets(path, known) else ""
    if whose in names[kind]:
        first = _own(root, whose)[0]
        if first.is_dir():
            return f", since {first}/ exists: move it there" if len(inside) == 1 else f": move it to {first}/"
        return f", since {first} exists: move what it says there"
    owner, other = ("group", "host_vars") if kind == "group_vars" else ("host", "group_vars")
    if whose in names[other]:
        hint = f"move it to {other}"
    elif meant := _meant(root, whose, names[kind]):
        hint = f"did you mean {meant}?"
    else:
        # It may belong to a host that is stopped, or to a group without hosts today.
        return ""
    if not (variables := _sets(path, known)):
        return ""
    return f", since the inventory has no {owner} {whose}, but it sets {', '.join(variables)}: {hint}"


def _meant(root: Path, name: str, known: set[str]) -> str:
    """The known name that was probably meant; "" if none. A name that already has a file is not the one."""
    return next((other for other in sorted(known) if is_mistyped(name, other) and not _own(root, other)), "")


def _own(root: Path, name: str) -> list[Path]:
    """The files or directories of a host or a group, in the order in which Ansible looks for them."""
    return [found for found in (root / f"{name}{end}" for end in ("", *_EXTENSIONS)) if found.exists()]


def _sets(path: Path, known: set[str]) -> list[str]:
    """The collection's variables that a file sets; none if it is encrypted."""
    keys = _keys(path.read_text(errors="replace"))
    return [key for key in keys if key in known or key.startswith("stack_")]


def _keys(text: str) -> list[str]:
    """The names of the variables in a YAML text; none if it is not a dictionary."""
    node = _node(text)
    return [str(key.value) for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []


def _node(text: str) -> yaml.Node | None:
    """The text parsed as YAML, tags included; None if it is not valid."""
    try:
        node: yaml.Node | None = yaml.compose(text)
    except yaml.YAMLError:
        return None
    return node


def check_vaults(inventory: Inventory) -> Iterator[str]:
    """Vault files contain no unencrypted secret. Examples, and files that Ansible does not read, may."""
    for root in sorted(read_directories(inventory)):
        for path in _files(root):
            parts = path.relative_to(root).parts
            is_read = path.suffix in ("", *_EXTENSIONS) and not any(map(_SAMPLE.search, parts))
            is_vault = any("vault" in os.path.splitext(part)[0] for part in parts)
            if is_read and is_vault and _is_clear(_node(path.read_text(errors="replace"))):
                yield f"{path} is not encrypted: run ansible-vault encrypt {path}"


def _is_clear(node: yaml.Node | None, is_secret: bool = False) -> bool:
    """Whether a value contains an unencrypted secret: a text under a secret's name that is neither encrypted nor a
    template."""
    if isinstance(node, yaml.MappingNode):
        entries = [(str(key.value), value) for key, value in node.value]
        # In {name: alice, key: ...} one is the secret, but in {alice: ...} under passwords all are.
        is_each = is_secret and not any(_SECRET.search(name) or name == "sha256" for name, _ in entries)
        return any(_is_clear(value, is_each or _SECRET.search(name) is not None) for name, value in entries)
    if isinstance(node, yaml.SequenceNode):
        return any(_is_clear(item, is_secret) for item in node.value)
    if not is_secret or not isinstance(node, yaml.ScalarNode) or node.tag.rpartition(":")[2] in ("bool", "null"):
        return False
    is_text = node.tag != "!vault" and bool(node.value.strip())
    return is_text and not re.search(r"{{|{%", node.value) and not _PLACE.fullmatch(node.value)


def _files(root: Path) -> list[Path]:
    """All files of a directory at any depth, except hidden ones, backups of editors, and examples."""
    return [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and not any(
            part.startswith(".") or part.endswith("~") or "example" in part for part in path.relative_to(root).parts
        )
    ]
