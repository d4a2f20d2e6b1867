"""Shared by all tests."""

import os

import pytest

pytest.register_assert_rewrite("faults", "launcher_contract", "leftovers", "notebooks", "scripts", "two_lines")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """In CI nothing is skipped: what is missing there fails the test that needs it."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: skipped, which CI must not do: {report.longrepr[2]}"
    return report
