"""Run tests; should a few of many fail, run these once more by themselves, and say loudly which were unsteady.

    python tests/steady.py tests/slurm tests/local

The tests of real engines on a busy machine have races with it that no fixture takes away. A test that fails twice
fails the run, and so do more than a few that fail once: that is no accident of the machine's.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

A_FEW = 3
CACHE = Path(f"build/pytest-{os.getpid()}").resolve()


def run(*arguments):
    """Give pytest's exit status."""
    return subprocess.run([sys.executable, "-m", "pytest", "-o", f"cache_dir={CACHE}", *arguments]).returncode


def main(arguments):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that puts it in the background has it ignored
    try:
        return twice(arguments)
    finally:
        shutil.rmtree(CACHE, ignore_errors=True)


def twice(arguments):
    """Run them, and a few that failed once more; give pytest's exit status."""
    status = run(*arguments)
    record = CACHE / "v" / "cache" / "lastfailed"
    if status != 1 or not record.exists():
        return status
    failed = list(json.loads(record.read_text()))
    if len(failed) > A_FEW:
        return status
    print(f"\nOnce more, by themselves: {', '.join(failed)}", flush=True)
    status = run("--last-failed", "--last-failed-no-failures=none", *arguments)
    if status == 0:
        print(f"\nUNSTEADY, failed once and passed by themselves: {', '.join(failed)}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
