"""Which rank ended first, and of what, in the words of srun and mpiexec."""

import pytest

from hpcmagic.keeper.ranks import first_cause

STEP_KILLED = """\
slurmstepd-n2: error: StepId=16.0 exceeded memory limit (659652608 > 314572800), being killed
srun: Job step aborted: Waiting up to 12 seconds for job step to finish.
slurmstepd-n1: error: *** STEP 16.0 ON n1 CANCELLED AT 2026-11-22T17:41:10 ***
srun: error: n1: task 0: Killed
"""
OOM_KILLED = """\
slurmstepd-n3: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.
srun: error: n3: task 2: Out Of Memory
"""


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (STEP_KILLED, "n2 ran out of the memory that the job asked for (`--mem`)"),
        (OOM_KILLED, "n3 ran out of the memory that the job asked for (`--mem`)"),
        ("srun: error: n4: task 3: Out Of Memory\n", "n4 ran out of the memory that the job asked for (`--mem`)"),
        ("srun: error: Node failure on n2\nsrun: error: n1: task 0: Terminated\n", "node n2 failed"),
        (
            "srun: error: n2: task 1: Segmentation fault\nsrun: error: n1: task 0: Killed\n",
            "rank 1 Segmentation fault",
        ),
        (
            "srun: error: n1: task 0: Killed\nsrun: error: n2: task 1: Exited with exit code 5\n",
            "rank 1 Exited with exit code 5",
        ),
        ("srun: error: n2: task 1: Killed\nsrun: error: n1: task 0: Terminated\n", "rank 1 Killed"),
        ("srun: error: n2: tasks 2-3: Exited with exit code 7\n", "rank 2-3 Exited with exit code 7"),
        ("srun: got SIGCONT\n", ""),
    ],
)
def test_first_cause(said, words):
    """The cause is named, not the ranks that were ended because of it."""
    assert first_cause(said) == words
