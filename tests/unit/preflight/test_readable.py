"""Variables that cannot be templated."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleError
from preflight_inventory import GOOD, problems


class Undefined(dict[str, Any]):
    """Variables of which one is a template of a variable that nobody set."""

    def get(self, name: str, default: Any = None) -> Any:
        if isinstance(value := super().get(name, default), AnsibleError):
            raise value
        return value


@pytest.mark.parametrize(("missing", "hint"), [("vault_proxy_keys", True), ("my_keys", False)])
def test_a_vault_that_is_not_there_is_said_to_be_made(inventory: dict[str, Any], missing: str, hint: bool) -> None:
    keys = AnsibleError(f"'{missing}' is undefined")
    inventory["hostvars"]["api1"] = Undefined(inventory["hostvars"]["api1"], proxy_keys=keys)
    (problem,) = problems(inventory)
    assert problem.startswith(f"proxy_keys of api1 cannot be read: '{missing}' is undefined")
    assert ("cp group_vars/vault.example.yml group_vars/proxy/vault.yml" in problem) is hint


class Untemplatable(dict[str, Any]):
    """Variables of a host of which some cannot be templated."""

    def __init__(self, values: dict[str, Any], errors: dict[str, Exception]) -> None:
        super().__init__(values | dict.fromkeys(errors))
        self._errors = errors

    def get(self, name: str, default: Any = None) -> Any:
        if name in self._errors:
            raise self._errors[name]
        return super().get(name, default)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("cannot convert 's3cret' to a number"), "ValueError, whose words may hold a secret"),
        (ValueError("Error: 'vault_proxy_keys' is undefined. s3cret"), "'vault_proxy_keys' is undefined: set it"),
        (ValueError("'hostvars['s3cret']' is undefined"), "ValueError, whose words may hold a secret"),
    ],
)
def test_a_variable_that_cannot_be_read_is_told_without_its_value(error: Exception, said: str) -> None:
    hostvars = GOOD["hostvars"] | {"api1": Untemplatable(GOOD["hostvars"]["api1"], {"proxy_keys": error})}
    (line,) = problems(GOOD | {"hostvars": hostvars})
    assert line.startswith(f"proxy_keys of api1 cannot be read: {said}")
    assert "s3cret" not in line
