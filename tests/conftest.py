"""Shared by all tests."""

import pytest

pytest.register_assert_rewrite("faults", "launcher_contract", "leftovers", "two_lines")
