"""The scenarios' tests share tests/lib; its asserts explain themselves like those of test files."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "lib"))
pytest.register_assert_rewrite("load", "service", "stack")
