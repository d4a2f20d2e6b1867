"""Attach to a session with 100 finished cells: from the call to the last result read.

Claim
    At most 3 s.
Work
    A session of four local ranks has run 100 cells, each with a line of output and a value of 10 kB a rank. A fresh
    interpreter calls `hpcmagic.attach`, lists all cells, and reads the last one's output and result. Stock
    ipyparallel has no counterpart: its results are gone with the client, or held in the controller's memory.
Measured
    In the fresh interpreter, from before `import hpcmagic` to the end.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import subprocess
import sys

import measure
import sides

CELLS = 100
LIMIT_S = 3.0
ATTACH = """
import json, sys, time
began_s = time.monotonic()
import hpcmagic
session = hpcmagic.attach("bench", session_dir=sys.argv[1])
cells = session.cells
assert len(cells) == int(sys.argv[2]) and all(cell.state == "done" for cell in cells)
assert len(cells[-1].result()[3]) == 10_000 and "cell" in cells[-1].output
print(json.dumps(time.monotonic() - began_s))
"""


def main() -> None:
    runs = measure.arguments(__doc__, runs=10).runs
    report = measure.Report("attach", __doc__)
    with sides.scratch() as place:
        side = sides.HpcMagic("local", "auto")
        side.start()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                for number in range(CELLS):
                    side.session.run(f"print('cell', {number})\nbytes(10_000)")
            figures = []
            for number in range(runs):
                measure.progress(f"attach {number} of {runs}")
                command = [sys.executable, "-c", ATTACH, str(place / "sessions"), str(CELLS)]
                answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
                if answer.returncode != 0:
                    sys.exit(answer.stderr)
                figures.append(json.loads(answer.stdout.splitlines()[-1]))
            measure.progress("")
        finally:
            side.stop()
    report.row("attach, 100 cells", "hpcmagic", "s", figures)
    report.claim("attach to a session with 100 finished cells", statistics.median(figures), LIMIT_S, "s")
    report.finish()


if __name__ == "__main__":
    main()
