"""Run all benchmarks in order and print the claims of all in one table.

Those that need SLURM run where sbatch answers; start_slurm.py says how to run them on the tests' own SLURM.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import measure

LOCAL = ("start_local", "empty_cell", "resident", "streamed", "attach", "restart", "journal_memory")
LOCAL += ("scatter_gather", "push_all", "latency", "data_memory", "growth")
LOCAL += ("steer_alone", "steer_cost", "steer_changes", "panel")
SLURM = ("start_slurm", "hub_bytes", "steer_nodes", "polite_poll")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", metavar="N", help="runs of each side, in every benchmark")
    runs = parser.parse_args().runs
    claims, failed = [], []
    names = (*LOCAL, *SLURM) if measure.slurm_answers() else LOCAL
    for name in names:
        script = Path(__file__).with_name(f"{name}.py")
        if subprocess.run([sys.executable, script, *(["--runs", runs] if runs else [])]).returncode != 0:
            failed.append(name)
            continue
        claims += json.loads((measure.RESULTS / f"{name}.json").read_text())["claims"]
    print(f"\nAll claims\n{measure.describe(measure.machine())}\n\n{measure.claims_table(claims)}")
    if names == LOCAL:
        print(f"No SLURM answers here: {', '.join(SLURM)} and a part of resident were left out.")
    if failed:
        sys.exit(f"Did not run: {', '.join(failed)}")


if __name__ == "__main__":
    main()
