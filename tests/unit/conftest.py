"""Unit tests meet no network, no sleep, no batch system, and nothing of the user who runs them."""

import os
import socket
import sys
import time

import hypothesis
import pytest

from hpcmagic import profiles

hypothesis.settings.register_profile("unit", database=None, deadline=None, derandomize=True)
hypothesis.settings.load_profile("unit")

OF_THE_USER = ("HPCMAGIC_", "SBATCH_", "SLURM_", "DASK_", "JPY_", "JUPYTERHUB_")


@pytest.fixture(autouse=True)
def empty_house(tmp_path, monkeypatch):
    """Let every test begin without profiles, sessions or variables of the user's."""
    for name in os.environ:
        if name.startswith(OF_THE_USER):
            monkeypatch.delenv(name)
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(profiles, "SITE_FILE", tmp_path / "site.toml")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Fail a test whose code sleeps or connects anywhere: it should have been given a fake."""
    sleep, connect = time.sleep, socket.socket.connect

    def guarded_sleep(seconds):
        caller = sys._getframe(1).f_globals.get("__name__", "")
        assert not caller.startswith("hpcmagic"), f"{caller} slept for {seconds} s"
        sleep(seconds)

    def guarded_connect(self, address):
        assert not isinstance(address, tuple), f"somebody connected to {address}"
        return connect(self, address)

    monkeypatch.setattr(time, "sleep", guarded_sleep)
    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
