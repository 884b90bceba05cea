"""Hosts' variables, with templates evaluated as far as is possible before a role runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ansible.template import Templar

# Known only in a play: facts that roles gather, and what Ansible sets for a role, a play or a loop.
_LATER = re.compile(
    r"ansible_(facts|local|loop\w*|parent_role_names|play_\w+|role_name|search_path)|item|play_hosts|role_\w+"
)
_WORD = re.compile(r"[A-Za-z_]\w*")
_NO_PASSWORD = (
    "no vault password was given: add --ask-vault-pass or --vault-password-file FILE (in AWX, a vault credential)"
)
_OTHER_PASSWORD = "it was encrypted with another vault password than the one that was given: give the one of this value"


class KnownLater(Exception):
    """The value depends on something that is known only while a role runs."""


class TemplatedHostvars(Mapping[str, Mapping[str, Any]]):
    """The variables of each host. Ansible's own hostvars cannot evaluate templates that use other hosts or a role's
    defaults."""

    def __init__(self, hostvars: Any, loader: Any, defaults: Mapping[str, Any], variables: set[str]) -> None:
        """`variables` are the names of all roles' variables: one without a value has a default that only its role
        knows."""
        self._hostvars, self._loader, self._defaults, self._of_roles = hostvars, loader, defaults, variables
        self._hosts: dict[str, _Variables] = {}

    def raw_get(self, host: str) -> Mapping[str, Any]:
        """The host's variables with their templates as they are written."""
        return self[host].raw

    def __getitem__(self, host: str) -> _Variables:
        if host not in self._hosts:
            raw = self._hostvars.raw_get(host)
            known = {**self._defaults, **raw}
            templar = Templar(self._loader, known | {"hostvars": self._hostvars, "vars": known})
            self._hosts[host] = _Variables(raw, templar, self._of_roles - known.keys())
        return self._hosts[host]

    def __iter__(self) -> Iterator[str]:
        return iter(self._hostvars)

    def __len__(self) -> int:
        return len(self._hostvars)


class _Variables(Mapping[str, Any]):
    """The variables of a host."""

    def __init__(self, raw: Mapping[str, Any], templar: Any, of_roles: set[str]) -> None:
        self.raw, self._templar, self._of_roles = raw, templar, of_roles

    def __getitem__(self, name: str) -> Any:
        value = self.raw[name]
        try:
            return self._templar.template(value)
        except Exception as error:
            if any(self._is_later(word) for word in self._words(value, {name})):
                raise KnownLater from error
            raise

    def __contains__(self, name: object) -> bool:
        return name in self.raw

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def _is_later(self, word: str) -> bool:
        is_fact = word.startswith("ansible_") and word not in self.raw
        return is_fact or word.startswith("__") or word in self._of_roles or _LATER.fullmatch(word) is not None

    def _words(self, value: Any, seen: set[str]) -> Iterator[str]:
        """The words in a value's templates, and in those of the variables that these use."""
        for text in templates(value):
            for word in _WORD.findall(text):
                yield word
                if word in self.raw and word not in seen:
                    seen.add(word)
                    yield from self._words(self.raw[word], seen)


def templates(value: Any) -> Iterator[str]:
    """All texts in a value, at any depth, that contain templates."""
    if isinstance(value, str):
        if "{{" in value or "{%" in value:
            yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from templates(item)


def why_unreadable(name: str, host: str, error: Exception) -> str:
    """The error, if it only names a variable: other messages may quote a secret."""
    if missing := re.search(r"'(\w+)' is undefined", str(error)):
        return f"{missing[0]}: set it, or correct the name"
    causes = list(_causes(error))
    if any(type(cause).__name__ == "AnsibleValueOmittedError" for cause in causes):
        return "omit has no meaning for a whole variable: give it a value, or take the line out"
    words = " ".join(map(str, causes)).lower()
    if "undecryptable" in words or "vault secret" in words:
        given = "that could decrypt" in words
        return f"it is encrypted, and {_NO_PASSWORD}" if not given else _OTHER_PASSWORD
    return (
        f"{type(error).__name__}, whose words may hold a secret. To see them: ansible {host} -m ansible.builtin.debug "
        f"-a var={name}"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
