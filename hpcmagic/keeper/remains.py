"""What an mpiexec that was killed leaves on this host; one that ends by itself clears up.

    $TMPDIR/ompi.HOST.UID/pid.PID/              Open MPI's folder of one run; contact.txt begins with the run's number
    /dev/shm/vader_segment.HOST.UID.RUN.RANK    4 MB of shared memory a rank

Those of other runs, of whoever's, are not touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # shm_overview(7) fixes the place; only one run's names go
FIRST_JOB = 1  # of a run: its ranks


def remove_remains(pid: int, temporary: Path | None = None, shared: Path = SHARED_MEMORY) -> None:
    """Remove what the mpiexec with this number has left behind."""
    me = os.getuid()
    for folder in (temporary or Path(tempfile.gettempdir())).glob(f"ompi.*.{me}/pid.{pid}"):
        with contextlib.suppress(OSError, ValueError):  # it may be gone, or never have got so far
            run = int((folder / "contact.txt").read_text().partition(".")[0])
            for segment in shared.glob(f"vader_segment.*.{me}.{run + FIRST_JOB:x}.*"):
                segment.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
