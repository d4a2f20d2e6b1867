"""Shared by all tests."""

import pytest

pytest.register_assert_rewrite("launcher_contract", "two_lines")
