"""group_vars and host_vars as ever, but an error in one of their files names the file, the line and what to do."""

from __future__ import annotations

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


class VarsModule(host_group_vars.VarsModule):  # type: ignore[misc]  # ansible-core ships no types
    """The variables of a host or a group."""

    def load_found_files(self, loader: Any, data: dict[str, Any], found_files: list[Any]) -> dict[str, Any]:
        """Each file over those before it. Raises AnsibleParserError, with the file's name."""
        for found in found_files:
            try:
                data = super().load_found_files(loader, data, [found])
            except AnsibleError as error:
                raise AnsibleParserError(explain(Path(str(found)), str(error))) from error
        return data


def explain(path: Path, error: str) -> str:
    """What is wrong with a file of variables, for a person."""
    text = path.read_text(errors="replace")
    if text.startswith("$ANSIBLE_VAULT"):
        if "no vault secrets" in error:
            return f"{path} is encrypted, and no vault password was given: add --ask-vault-pass or --vault-password-file FILE (in AWX, a vault credential)."
        return f"{path} cannot be decrypted: {error}. Is it the password of this file?"
    try:
        yaml.compose(text)
    except yaml.MarkedYAMLError as slip:
        mark = slip.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        return f"{path}{where} is not valid YAML: {slip.problem}. Values that begin with {{{{ need quotes."
    return f"{path}: {error}"
