"""Shared by all tests."""

import pytest

pytest.register_assert_rewrite("faults", "launcher_contract", "leftovers", "notebooks", "two_lines")
