"""Failed asserts of the shared helpers show their values, like those of test files."""

import pytest

pytest.register_assert_rewrite("helpers")
