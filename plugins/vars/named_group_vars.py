"""Load group_vars and host_vars like Ansible, but with errors that name the file, the line and what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError, AnsibleParserError
from ansible.plugins.vars import host_group_vars

DOCUMENTATION = """
name: named_group_vars
short_description: Reads group_vars and host_vars, and names the file in which an error is
description:
  - Does what P(ansible.builtin.host_group_vars#vars) does, in whose place it is enabled. That one's errors do not say which file they are about.
options:
  stage:
    description: When the files are read.
    default: inventory
    ini: [{key: stage, section: vars_host_group_vars}]
    env: [{name: ANSIBLE_VARS_PLUGIN_STAGE}]
  _valid_extensions:
    description: Extensions of the files that are read.
    default: [".yml", ".yaml", ".json"]
    type: list
    elements: string
    ini: [{key: yaml_valid_extensions, section: defaults}]
    env: [{name: ANSIBLE_YAML_FILENAME_EXT}]
"""

NAME = re.compile(r"[A-Za-z_][A-Za-z_-]{0,31}")


class VarsModule(host_group_vars.VarsModule):  # type: ignore[misc]  # ansible-core ships no types
    """The variables of a host or a group."""

    def load_found_files(self, loader: Any, data: dict[str, Any], found_files: list[Any]) -> dict[str, Any]:
        """Each file over those before it. Raises AnsibleParserError, with the file's name."""
        for found in found_files:
            try:
                data = super().load_found_files(loader, data, [found])
            except (AnsibleError, ValueError, yaml.YAMLError) as error:
                # Without the error's own words, which quote lines of the file and so perhaps secrets.
                raise AnsibleParserError(explain(Path(str(found)), loader, str(error))) from None
        return data


def explain(path: Path, loader: Any, error: str) -> str:
    """What is wrong with a file of variables, and what to do."""
    encrypted = path.read_bytes().startswith(b"$ANSIBLE_VAULT")
    try:
        text = loader.get_text_file_contents(str(path))
    except AnsibleError as refused:
        if "but no vault secrets" in str(refused):
            return (
                f"{path} is encrypted, and no vault password was given: add --ask-vault-pass or --vault-password-file FILE. "
                "In AWX, give the job a vault credential; an inventory source of AWX takes none, so encrypt the file's values one by one "
                "(ansible-vault encrypt_string) and not the file."
            )
        if "no vault secrets were found that could" in str(refused):
            return f"{path} is encrypted with another vault password than the one that was given: give the one of this file."
        return f"{path} cannot be read: {refused}"
    mend = f"; mend it with ansible-vault edit {path}" if encrypted else ""
    try:
        if double := doubled(yaml.compose(text)):
            first, second, key = double
            # A key that does not look like a name may be a secret.
            name = f" {key!r}" if NAME.fullmatch(key) else ""
            return f"{path}, lines {first} and {second} have the duplicate mapping key{name}, of which one value would be lost: take one of them out{mend}."
    except yaml.MarkedYAMLError as slip:
        mark = slip.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        return f"{path}{where} is not valid YAML: {slip.problem}. Values that begin with {{{{ need quotes{mend}."
    except (ValueError, yaml.YAMLError):
        return f"{path} is not a text in UTF-8: save it in that encoding, without control characters{mend}."
    return f"{path}: {error}"


def doubled(node: yaml.Node | None) -> tuple[int, int, str] | None:
    """The two lines and the name of a key that is twice in a dictionary, at any depth."""
    if isinstance(node, yaml.SequenceNode):
        return next(filter(None, map(doubled, node.value)), None)
    if not isinstance(node, yaml.MappingNode):
        return None
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and seen.setdefault(key.value, line) != line:
            return seen[key.value], line, key.value
        if inner := doubled(value):
            return inner
    return None
