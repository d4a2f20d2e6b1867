"""The live panel in a real JupyterLab and a real Chromium: 512 × 512 values and ten curves, thirty times a second.

Claim
    To quantise a picture and send it to the page takes at most 1.2 ms of the processor, and what the kernel's threads
    do for it, receiving included, no more either; at least 25 a second are drawn. A page that stalls for a minute
    makes neither the Jupyter server nor the kernel grow by more than 16 MB, and in ten minutes neither page nor
    kernel grow by more than 8 MB.
Work
    Two ranks with half of the field each, steps of 5 ms, ten numbers published at each; they give watching all of the
    time that it takes (`share=1`), where a simulation gives one part in a hundred. `--minutes 1` for a trial.
Measured
    Drawn: calls of putImageData in the page. The processor's time: the clocks of the kernel's threads from outside
    (/proc), for each picture that the page took; on the ranks thread_time around `live.field`, of the slower rank.
    Bytes over the websocket as the browser tells them, for ten seconds of their own. Resident: VmRSS. The page's heap
    after its garbage is collected. A page stalls when a debugger halts it. All of these share this machine's cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from pathlib import Path

import measure
import psutil
import sides

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import lab

LIMIT_MS, LEAST_HZ = 1.2, 25.0
STALLED_LIMIT_MB, GROWN_LIMIT_MB = 16.0, 8.0
WARMS_S, LISTENS_S, STALLS_S = 15.0, 10.0, 60.0
THREADS = {"hpcmagic-mirror": "receive", "hpcmagic-panel": "make a message", "IOPub": "send"}
START = "%load_ext hpcmagic\n%hpc start --nodes 2"
SIMULATION = """\
%%remote -a --out run
import time
import numpy as np
from hpcmagic import steer
n = 512
rows = slice(rank * n // size, (rank + 1) * n // size)
field = np.random.default_rng(rank).random((n // size, n))
live = steer.live(comm, share=1.0)
spent_s, frames = 0.0, 0
for step in live.steps(10**9):
    field[step % len(field)] = step
    live.publish(**{f"curve {k}": np.sin(step / (50 + k)) for k in range(10)})
    began_s = time.thread_time()
    live.field("T", field, box=(rows, slice(0, n)))
    spent_s += time.thread_time() - began_s
    time.sleep(0.005)
spent_s
"""
THREADS_OF = """\
import json, os, threading
print(json.dumps([os.getpid(), {one.name: one.native_id for one in threading.enumerate()}]))
"""
STOP = "session = run.session; session.steer.stop(); print(max(run.result(timeout=60)))"
COUNT = """() => {
    window.drawn = 0;
    const own = CanvasRenderingContext2D.prototype, put = own.putImageData;
    own.putImageData = function (...given) { window.drawn++; return put.apply(this, given); };
}"""
COUNTED = """() => {
    const field = document.querySelector('.hpcmagic-live').shadowRoot.querySelector('.field');
    return [window.drawn, Number(field.dataset.frames)];
}"""


class Watched:
    """A notebook whose panel shows the simulation, and what can be known of it from outside."""

    def __init__(self, page, server) -> None:
        self.page, self.server = page, server
        self.sockets = []

        def note(socket) -> None:
            self.sockets.append(socket)

        page.on("websocket", note)
        self.notebook = lab.Notebook(page, server, "panel.ipynb", [START, SIMULATION, THREADS_OF, STOP])
        for number in (0, 1):
            self.notebook.run(number)
        page.evaluate(COUNT)
        page.wait_for_selector('.hpcmagic-live[data-state="running"] .field[data-frames]')
        self.notebook.run(2)
        self.kernel, self.threads = json.loads(self.notebook.text(2))
        self.debugger = page.context.new_cdp_session(page)
        for part in ("Performance", "HeapProfiler", "Debugger"):
            self.debugger.send(f"{part}.enable")

    def counted(self) -> tuple[int, int]:
        """Give how many pictures the page has drawn, and how many it took."""
        drawn, taken = self.page.evaluate(COUNTED)
        return drawn, taken

    def spent_ms(self) -> dict[str, float]:
        """Give what the kernel's threads have taken of the processor; ``ZeroMQ`` are those of the library."""
        whole = psutil.Process(self.kernel).cpu_times()
        spent = {**dict.fromkeys([*THREADS, "ZeroMQ"], 0.0), "all": 1e3 * (whole.user + whole.system)}
        names = {number: name for name, number in self.threads.items()}
        for task in Path(f"/proc/{self.kernel}/task").iterdir():
            with contextlib.suppress(OSError):  # some come and go
                zeromq = (task / "comm").read_text().startswith("ZMQ")
                name = "ZeroMQ" if zeromq else names.get(int(task.name), "")
                if name in spent:
                    spent[name] += int((task / "schedstat").read_text().split()[0]) / 1e6
        return spent

    def heap_mb(self) -> float:
        """Give what the page holds once its garbage is collected."""
        self.debugger.send("HeapProfiler.collectGarbage")
        metrics = self.debugger.send("Performance.getMetrics")["metrics"]
        return next(one["value"] for one in metrics if one["name"] == "JSHeapUsedSize") / 1e6

    def received_mb(self, seconds: float) -> float:
        """Give the MB a second that come over the websockets."""
        sizes: list[int] = []

        def take(frame) -> None:
            sizes.append(len(frame))

        for socket in self.sockets:
            socket.on("framereceived", take)
        began_s = time.monotonic()
        self.page.wait_for_timeout(1e3 * seconds)
        took_s = time.monotonic() - began_s
        for socket in self.sockets:
            socket.remove_listener("framereceived", take)
        return sum(sizes) / 1e6 / took_s

    def stalled(self, seconds: float) -> tuple[list[float], list[float]]:
        """Halt the page; give what server and kernel are resident, once a second from before it on."""
        server, kernel = [rss_mb(self.server.pid)], [rss_mb(self.kernel)]
        self.debugger.send("Debugger.pause")
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            time.sleep(1)
            measure.progress(f"the page stalls: {until_s - time.monotonic():.0f} s")
            server.append(rss_mb(self.server.pid))
            kernel.append(rss_mb(self.kernel))
        self.debugger.send("Debugger.resume")
        return server, kernel


def rss_mb(pid: int) -> float:
    """Give what a process is resident."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def grown_mb(figures: list[float]) -> float:
    """Give by how much the last third is more than the first."""
    third = max(1, len(figures) // 3)
    return statistics.median(figures[-third:]) - statistics.median(figures[:third])


def steady(report: measure.Report, watched: Watched, blocks: int, block_s: float) -> dict[str, float]:
    """Watch it for a while; report what it costs, and what grows. Give ms a picture by the kernel's threads."""
    names = [*THREADS, "ZeroMQ", "all"]
    hz: dict[str, list[float]] = {"drawn": [], "taken": []}
    cost: dict[str, list[float]] = {name: [] for name in names}
    heap, kernel, server = [], [], []
    for block in range(blocks):
        measure.progress(f"block {block + 1} of {blocks}")
        before, spent, began_s = watched.counted(), watched.spent_ms(), time.monotonic()
        watched.page.wait_for_timeout(1e3 * block_s)
        after, spent_then, took_s = watched.counted(), watched.spent_ms(), time.monotonic() - began_s
        for at, name in enumerate(hz):
            hz[name].append((after[at] - before[at]) / took_s)
        for name in names:
            cost[name].append((spent_then[name] - spent[name]) / max(1, after[1] - before[1]))
        heap.append(watched.heap_mb())
        kernel.append(rss_mb(watched.kernel))
        server.append(rss_mb(watched.server.pid))
    measure.progress("")
    report.row("pictures drawn", "page", "/s", hz["drawn"])
    report.row("pictures taken", "page", "/s", hz["taken"])
    for name, does in {**THREADS, "ZeroMQ": "its own threads", "all": "whole process"}.items():
        report.row(f"a picture, of the processor: {does}", f"kernel, {name}", "ms", cost[name])
    report.row("heap", "page", "MB", heap)
    report.row("resident", "kernel", "MB", kernel)
    report.row("resident", "Jupyter server", "MB", server)
    report.claim("1000 / pictures drawn a second", 1e3 / statistics.median(hz["drawn"]), 1e3 / LEAST_HZ, "ms")
    report.claim(f"page, grown in {blocks * block_s / 60:g} minutes", grown_mb(heap), GROWN_LIMIT_MB, "MB")
    report.claim(f"kernel, grown in {blocks * block_s / 60:g} minutes", grown_mb(kernel), GROWN_LIMIT_MB, "MB")
    return {does: statistics.median(cost[name]) for name, does in THREADS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="blocks of the time (default 20)")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="how long in all (default 10)")
    options = parser.parse_args()
    if mends := lab.mends():
        sys.exit(f"It takes a browser: {' and '.join(mends)}.")
    report = measure.Report("panel", __doc__)
    stalls_s = min(STALLS_S, 60 * options.minutes)
    with sides.scratch() as place, lab.served(place) as server, lab.opened(server) as page:
        watched = Watched(page, server)
        page.wait_for_timeout(1e3 * WARMS_S)
        report.row("over the websocket", "page", "MB/s", [watched.received_mb(LISTENS_S)])
        kernel_ms = steady(report, watched, options.runs, 60 * options.minutes / options.runs)
        held, kernel = watched.stalled(stalls_s)
        _, taken = watched.counted()
        page.wait_for_function("(n) => (" + COUNTED + ")()[1] > n + 10", arg=taken)
        _, taken = watched.counted()
        watched.notebook.run(3)
        ranks_ms = 1e3 * float(watched.notebook.text(3)) / taken
        watched.notebook.close()
    report.row(f"resident while the page stalls for {stalls_s:g} s", "Jupyter server", "MB", held)
    report.row(f"resident while the page stalls for {stalls_s:g} s", "kernel", "MB", kernel)
    report.row("a picture, of the processor: quantise", "the slower rank", "ms", [ranks_ms])
    sent_ms = ranks_ms + sum(kernel_ms.values()) - kernel_ms["receive"]
    report.claim("a picture: quantise, make a message, send", sent_ms, LIMIT_MS, "ms")
    report.claim("a picture: receive, make a message, send", sum(kernel_ms.values()), LIMIT_MS, "ms")
    report.claim("Jupyter server, page stalls", max(held) - held[0], STALLED_LIMIT_MB, "MB")
    report.claim("kernel, page stalls", max(kernel) - kernel[0], STALLED_LIMIT_MB, "MB")
    report.finish()


if __name__ == "__main__":
    main()
