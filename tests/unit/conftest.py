"""Ansible's plugins, which some tests evaluate templates with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ansible.plugins.loader import init_plugin_loader
from jinja2 import Environment

# Once per process: Ansible warns of a second time.
init_plugin_loader()


@pytest.fixture(autouse=True, scope="session")
def templates_are_compiled_once() -> Iterator[None]:
    """Keep each compiled template: one evaluation of a role's expressions needs three hundred of them, and tests make hundreds."""
    compiled: dict[Any, Any] = {}
    original = Environment.compile

    def compile_once(self: Environment, source: Any, *arguments: Any, **options: Any) -> Any:
        key = (type(self), str(source), arguments, tuple(options.items()))
        if key not in compiled:
            compiled[key] = original(self, source, *arguments, **options)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Environment, "compile", compile_once)
        yield
