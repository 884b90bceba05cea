"""A good inventory to change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from preflight_inventory import GOOD


@pytest.fixture
def inventory() -> dict[str, Any]:
    return copy.deepcopy(GOOD)
