"""What a person with nodes sees: a notebook in a real browser, its kernel a user's own on the hub.

Chromium ─► JupyterLab (here) ─ sockets in the user's home ─► kernel (alice's, on the hub) ─► SLURM
"""

import os
import re
import shutil
import tempfile
from datetime import datetime
from pathlib import Path

import pytest
from lab import PLACES, NoLab, Notebook, mends, opened, served

HOME = Path("/home/alice")
KERNEL = """#!/bin/sh
set -eu
install -m 600 -o alice -g alice "$1" "$1.own" # the server's is root's
exec {cluster} as alice "JPY_SESSION_NAME=$JPY_SESSION_NAME" {python} -m ipykernel_launcher -f "$1.own"
"""
SPEC = '{{"argv": ["{argv}", "{{connection_file}}"], "display_name": "hub", "language": "python"}}'


@pytest.fixture
def lab(cluster):
    """JupyterLab, with a kernel that is alice's on the hub."""
    if lacking := " and ".join(mends()):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no browser tests here: {lacking}")
    for folder in (".local/state/hpcmagic", ".cache/hpcmagic", ".config/hpcmagic"):
        shutil.rmtree(HOME / folder, ignore_errors=True)
    root = Path(tempfile.mkdtemp(dir=HOME, prefix="lab-"))
    root.chmod(0o755)
    start = root / "kernel"
    start.write_text(KERNEL.format(cluster=Path(__file__).with_name("cluster"), python=cluster.python))
    start.chmod(0o755)
    spec = root / PLACES["JUPYTER_DATA_DIR"] / "kernels" / "hub" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(SPEC.format(argv=start))
    runtime = root / PLACES["JUPYTER_RUNTIME_DIR"]
    runtime.mkdir()
    shutil.chown(runtime, "alice")
    try:
        with served(root, "--KernelManager.transport=ipc") as server:
            yield server
    except NoLab as error:
        pytest.fail(f"JupyterLab does not start:\n{error}", pytrace=False)
    finally:
        shutil.rmtree(root, ignore_errors=True)


CELLS = [
    "%load_ext hpcmagic",
    "%%remote --nodes 2 --time 30 --session seen\nimport socket; socket.gethostname()",
    "%budget 60",
    "%%remote\nimport time; time.sleep(300)",
]


def fact(row, name):
    """Give what a row of the meter says of a thing."""
    return row.locator(f'[data-fact="{name}"]').inner_text()


def test_meter(cluster, lab):
    """The meter shows what SLURM bills, also while a cell blocks the kernel; its button ends the job."""
    with opened(lab) as page:
        book = Notebook(page, lab, "seen.ipynb", CELLS, kernel="hub")
        book.run(0)
        book.run(1)
        assert "'n1'" in book.text(1)
        row = page.locator('.hpcmagic-meter [data-session="seen"][data-state="ready"]')
        row.wait_for()
        ((job, _, _),) = cluster.jobs()
        told = cluster.hub("scontrol", "show", "job", job).stdout
        assert f"job {job} · 2 ranks" in row.inner_text()
        an_hour = 60 * int(re.search(r"billing=(\d+)", told)[1])
        assert float(row.get_attribute("data-rate")) == pytest.approx(
            an_hour, rel=0.2
        )  # exact weights, not whole units
        rate, ceiling = (float(row.get_attribute(f"data-{name}")) for name in ("rate", "ceiling"))
        assert ceiling == pytest.approx(rate / 2, rel=0.01)
        began = datetime.fromisoformat(re.search(r"StartTime=(\S+)", told)[1])
        spent, now = float(row.get_attribute("data-spent")), cluster.hub("date", "+%s").stdout
        assert spent == pytest.approx(rate * (int(now) - began.timestamp()) / 3600, abs=rate * 3 / 3600)
        assert fact(row, "left").endswith(f"until {re.search(r'EndTime=.{10}T(.{5})', told)[1]}")

        book.run(2)
        budget = row.locator('[data-fact="budget"]')
        budget.get_by_text("of 60 left").wait_for()
        book.run(3, wait=False)
        page.locator('[data-session="seen"][data-busy="true"]').wait_for()
        before = float(row.get_attribute("data-spent"))
        page.wait_for_function(
            "([row, spent]) => Number(row.dataset.spent) > spent + 0.01", arg=[row.element_handle(), before]
        )
        row.get_by_role("button", name="stop session").click()
        row.get_by_role("button", name="Stop it").click()
        ended = page.locator('[data-session="seen"][data-state="ended"]')
        ended.get_by_text("by accounting").wait_for()
        assert cluster.hub("squeue", "-h", "-j", job, "-o", "%T").stdout.strip() in {"", "COMPLETING"}
        book.close()
