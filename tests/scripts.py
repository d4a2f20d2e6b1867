"""Scripts of an ordinary user's on the SLURM test bed, which tell a test how they get on."""

import json
import subprocess
import threading
from pathlib import Path

CLUSTER = Path(__file__).parent / "slurm" / "cluster"


class Script:
    """A script of alice's on the test bed's hub; `hears` waits for a thing of a kind that it says: @["kind", what]."""

    def __init__(self, cluster, code):
        words = (CLUSTER, "as", "alice", cluster.python, "-u", "-c", code)
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.cluster = cluster
        self.said = ""
        self.told = {}
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        with self.process.stdout as lines:
            for line in lines:
                with self._changed:
                    self.said += line
                    if line.startswith("@["):
                        kind, what = json.loads(line[1:])
                        self.told[kind] = what
                    self._changed.notify_all()

    def hears(self, kind, seconds=30):
        """Give what it says of something, as soon as it does."""
        with self._changed:
            self._changed.wait_for(lambda: kind in self.told or self.process.poll() is not None, seconds)
        if kind not in self.told:
            self.process.poll() is None or self._reader.join(5)
        assert kind in self.told, self.said
        return self.told[kind]

    def over(self, seconds=60):
        """Wait for its end, which must be a good one; give all that it told."""
        try:
            assert self.process.wait(seconds) == 0, self.said
        finally:
            self.end()
        return self.told

    def end(self):
        """End it, if it goes on; the job of one that has failed would keep the nodes from all that follow."""
        self.process.kill()
        if self.process.wait(10):
            self.cluster.hub("scancel", "--user=alice")
        self._reader.join(10)
