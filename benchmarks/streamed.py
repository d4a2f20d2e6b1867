"""Four ranks print 20 000 lines each: seconds, bytes to the front end, and how soon an interrupt is served.

Claim
    While lines stream, an interrupt from the front end ends the cell within 1 s. Bytes and seconds against
    ipyparallel's `%%px` are stated, with no limit.
Work
    A real kernel (ipykernel) with the magics loaded, asked as a front end asks it, over jupyter_client. In turn:
    `%%remote` and `%%px` with a loop that prints the same 20 000 lines on all four ranks, and one whose lines
    differ by rank. Both stream, as they come out of the box.
Measured
    From the request to the kernel's `idle`; the size of all iopub messages' contents in between, as JSON. Then a
    loop that prints without end, interrupted after 2 s: from the interrupt request to `idle`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import statistics
import time

import measure
import sides
from jupyter_client.manager import start_new_kernel

LINES = 20_000
LIMIT_S = 1.0
START = {
    "%%remote": "%load_ext hpcmagic\n%hpc start --nodes 4 --launcher local --session bench --keep",
    "%%px": "import ipyparallel as ipp\ncluster = ipp.Cluster(n=4, log_level=40)\n"
    "client = cluster.start_and_connect_sync(activate=True)\n"
    "client[:].scatter('rank', range(4), flatten=True, block=True)",
}
STOP = {"%%remote": "%hpc stop", "%%px": "client.close(); cluster.stop_cluster_sync()"}
SAME = f"for i in range({LINES}):\n    print('line', i, 'of a long output')"
OWN = f"for i in range({LINES}):\n    print('line', i, 'of rank', rank)"
ENDLESS = "i = 0\nwhile True:\n    i += 1\n    print('line', i)"


class FrontEnd:
    """A kernel and what a front end does with it."""

    def __init__(self) -> None:
        self.manager, self.client = start_new_kernel()

    def run(self, code: str, *, interrupt_after_s: float | None = None) -> tuple[float, int]:
        """Run code until the kernel is idle; give seconds (since the interrupt, if any) and bytes that came."""
        asked = self.client.execute(code)
        began_s = time.monotonic()
        nbytes = 0
        while True:
            now = time.monotonic()
            if interrupt_after_s is not None and now - began_s > interrupt_after_s:
                self.manager.interrupt_kernel()
                began_s, interrupt_after_s = time.monotonic(), None
            if now - began_s > 300:
                raise TimeoutError(code)
            with contextlib.suppress(queue.Empty):
                message = self.client.get_iopub_msg(timeout=0.1)
                if message["parent_header"].get("msg_id") != asked:
                    continue
                nbytes += len(json.dumps(message["content"]))
                if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                    return time.monotonic() - began_s, nbytes

    def close(self) -> None:
        """End the kernel."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def main() -> None:
    runs = measure.arguments(__doc__, runs=5).runs
    report = measure.Report("streamed", __doc__)
    with sides.scratch() as place, contextlib.ExitStack() as stack:
        os.environ["XDG_STATE_HOME"] = str(place)
        fronts = {name: FrontEnd() for name in START}
        for name, front in fronts.items():
            stack.callback(front.close)
            front.run(START[name])
            stack.callback(front.run, STOP[name])
        for what, source in (("the same lines", SAME), ("lines of their own", OWN)):
            work = {name: lambda n=name, s=source: fronts[n].run(f"{n}\n{s}") for name in START}
            figures = measure.alternate(work, runs)
            for name in START:
                report.row(what, name, "s", [seconds for seconds, _ in figures[name]])
                report.row(f"{what}: to the front end", name, "kB", [n / 1e3 for _, n in figures[name]])
        served = []
        for number in range(runs):
            measure.progress(f"interrupt {number} of {runs}")
            served.append(fronts["%%remote"].run(f"%%remote\n{ENDLESS}", interrupt_after_s=2.0)[0])
        measure.progress("")
    report.row("interrupt to idle", "%%remote", "s", served)
    report.claim("interrupt while lines stream", statistics.median(served), LIMIT_S, "s")
    report.finish()


if __name__ == "__main__":
    main()
