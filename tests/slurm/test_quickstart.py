"""The quickstart notebook as one SLURM job over four nodes, unchanged but for the name of its profile."""

import re
import shutil
from pathlib import Path

import nbformat

QUICKSTART = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"
SESSIONS = Path("/home/alice/.local/state/hpcmagic")
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.stdin, as_version=4)
NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
print(nbformat.writes(notebook))
"""


def alices_jobs(cluster):
    """Id, number of nodes and user of each job of alice's that accounting knows."""
    done = cluster.hub(
        "sacct", "-X", "-n", "-P", "--user=alice", "--starttime=now-1days", "--format=JobID,NNodes,User"
    )
    return set(done.stdout.split())


def test_one_job_over_four_nodes(cluster):
    """It passes as one job with one MPI world over four nodes, its last assertion included, and leaves nothing."""
    for folder in (SESSIONS, Path("/home/alice/.config/hpcmagic"), Path("/home/alice/.config/dask")):
        shutil.rmtree(folder, ignore_errors=True)
    before = alices_jobs(cluster)
    source = QUICKSTART.read_text()
    assert source.count(r"profile = \"local\"") == 1
    source = source.replace(r"profile = \"local\"", r"profile = \"slurm\"")
    done = cluster.as_user("alice", cluster.python, "-c", EXECUTE, input=source, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    notebook = nbformat.reads(done.stdout, as_version=4)
    outputs = {cell.id: cell.get("outputs", []) for cell in notebook.cells}
    said = "\n".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs["hello"])
    (job,) = re.findall(r"job (\d+), 4 nodes", said)
    for rank, node in enumerate(cluster.nodes):
        assert f"[{rank}] rank {rank} of 4 on {node}, an MPI world of 4" in said
    new = {row for row in alices_jobs(cluster) - before if int(row.partition("|")[0]) >= int(job)}
    assert new == {f"{job}|4|alice"}
    assert "four ranks measured what one process measures" in outputs["check"][0].text
    assert any("image/png" in o.get("data", {}) for o in outputs["figure"])
    assert [path.name for path in SESSIONS.iterdir()] == ["ended"]
