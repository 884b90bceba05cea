"""Problems as a terminal shows them."""

from __future__ import annotations

from typing import Any

import pytest
from preflight_inventory import engine, found, key


@pytest.mark.parametrize(
    "variables",
    [
        {"proxy_models": [{"name": "\x1b[31mred\nm"}]},
        {"proxy_routing": {"pools": {"\x1b[2J\u202e" * 900: {}}}},
        {"proxy_models": [{"name": "long name " * 20_000}]},
        key(name="\x1b[31mred"),
        engine(name="\x9b" + "x" * 9000),
        {"stack_domain": "\r\n" + "x" * 9000},
        {"proxy_\x1b[31m": 1},
        {"proxy_queue": {"\x1b[31m": 1}},
    ],
)
def test_a_name_can_neither_steer_a_terminal_nor_fill_it(variables: dict[str, Any]) -> None:
    lines = found(**variables)
    assert lines
    assert all(line.isprintable() and len(line) < 5000 for line in lines), lines
