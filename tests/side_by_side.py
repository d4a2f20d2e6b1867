"""Every test, in three streams side by side; should a few fail, once more these alone.

    python tests/side_by_side.py        what each stream says stands in build/ while it runs

Most tests wait: for SLURM, for a browser, for time to pass. Side by side they keep two processors busy and take half
as long. But then a rank may be late, which no fixture takes away: so a few tests that fail are run once more with
nothing beside them, and named loudly as unsteady. One that fails twice fails the run, and so do more than a few that
fail once: that is no accident of the machine's.
"""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

A_FEW = 4
LIMIT_S = 40 * 60
LINT = ("make", "--no-print-directory", "lint")
SHORTER = ("quickstart", "security", "simulations", "spending_here", "steer", "steer_line", "workflows")
SOME = tuple(f"tests/local/test_{name}.py" for name in SHORTER)  # so that all streams take about as long
STREAMS = {
    "slurm": (("tests/slurm",),),
    "local": (("tests/local", *(f"--ignore={file}" for file in SOME)),),
    "beside": (LINT, ("tests/unit",), ("tests/browser",), SOME),
}
BUILD = Path("build")
TESTS_FAILED = 1  # pytest's exit status


class NotTests(Exception):
    """What failed is more than tests."""


def call(command, out):
    """Give the exit status of a command that cannot go on for ever."""
    try:
        return subprocess.run(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, timeout=LIMIT_S).returncode
    except subprocess.TimeoutExpired as error:
        words = f"not over after {LIMIT_S // 60} minutes: it hangs, or a thread keeps it from ending"
        raise NotTests(f"{' '.join(command)}: {words}") from error


def tests(arguments, out, cache):
    """Run pytest; give the names of tests that failed."""
    shutil.rmtree(cache, ignore_errors=True)
    status = call([sys.executable, "-m", "pytest", "-o", f"cache_dir={cache.resolve()}", *arguments], out)
    record = cache / "v" / "cache" / "lastfailed"
    failed = list(json.loads(record.read_text())) if record.exists() else []
    shutil.rmtree(cache, ignore_errors=True)
    if status not in {0, TESTS_FAILED} or (status and not failed):
        raise NotTests(f"pytest {' '.join(arguments)}: exit status {status}")
    return failed


def stream(name, commands):
    """Run commands one after the other; give the names of tests that failed, and what else did."""
    failed, broken = [], []
    with (BUILD / f"{name}.txt").open("w") as out:
        for command in commands:
            try:
                if command is not LINT:
                    failed += tests(command, out, BUILD / f"pytest-{name}")
                elif call(command, out):
                    broken.append("make lint")
            except NotTests as error:
                broken.append(str(error))
    return failed, broken


def follow(path, work):
    """Show what comes into a file until the work that fills it is over."""
    path.touch()
    with path.open(errors="replace") as file:
        over = False
        while not over:
            over = bool(wait([work], 0.5).done)
            print(file.read(), end="", flush=True)


def main():
    """Give the exit status."""
    BUILD.mkdir(exist_ok=True)
    with ThreadPoolExecutor(len(STREAMS)) as pool:
        works = {name: pool.submit(stream, name, commands) for name, commands in STREAMS.items()}
        for name, work in works.items():
            print(f"\n===== {name}", flush=True)
            follow(BUILD / f"{name}.txt", work)
    failed, broken = ([one for work in works.values() for one in work.result()[n]] for n in (0, 1))
    if 0 < len(failed) <= A_FEW:
        print(f"\n===== once more, alone: {', '.join(failed)}", flush=True)
        try:
            unsteady, failed = failed, tests(failed, None, BUILD / "pytest-again")
            print(
                f"\nUNSTEADY, failed beside others, passed alone: {', '.join(set(unsteady) - set(failed)) or 'none'}"
            )
        except NotTests as error:
            broken.append(str(error))
    for line in (*broken, *(f"{name} failed" for name in failed)):
        print(line)
    return bool(failed or broken)


if __name__ == "__main__":
    sys.exit(main())
