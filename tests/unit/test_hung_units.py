"""What hangs is ended by systemd, and started again by its unit or its timer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).resolve().parents[2] / "roles").glob("*/templates/*.service.j2"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name.removesuffix(".j2"))
def test_a_unit_that_runs_once_does_not_run_for_ever(unit: Path) -> None:
    """By default systemd waits for a oneshot unit without a limit, and starts neither its timer's next run nor what comes after it."""
    text = unit.read_text()
    if "Type=oneshot" not in text:
        return
    limits = re.findall(r"^TimeoutStartSec=(.+)$", text, re.MULTILINE)
    assert limits, f"{unit.name}: set TimeoutStartSec"
    assert "infinity" not in limits
