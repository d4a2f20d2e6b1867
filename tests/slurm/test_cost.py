"""What hpcmagic says that a job costs is what SLURM charges the account: shape by shape, each with an account of its own.

A script of alice's submits all jobs at once, asks hpcmagic for the quote, for what each job has got while it runs, and
for accounting's word when it is over. What was charged is what the controller's books say of the association.
"""

import json
import re
import textwrap
import threading
import time

import pytest

PREFIX = "cost-"
S_PER_MINUTE = 60.0
MINUTE = 1.0  # billing-minute
SHARE = 0.01
PLAIN = {"nodes": 1, "ntasks_per_node": 1, "cpus_per_task": 1, "time": "5", "sleep_s": 8}
SHAPES = {
    "one-cpu": {},
    "all-cpus": {"cpus_per_task": 4},
    "memory": {"mem": "4500M"},
    "gpus": {"gpus_per_node": 2},
    "four-nodes": {"nodes": 4},
    "nodes-and-ranks": {"nodes": 2, "ntasks_per_node": 2, "mem": "1G"},
    "qos-half": {"qos": "half", "cpus_per_task": 2},
    "qos-free": {"qos": "free", "gpus_per_node": 1},
    "qos-dear": {"qos": "dear", "mem": "1500M"},
    "all-at-once": {"nodes": 2, "cpus_per_task": 2, "mem": "2G", "gpus_per_node": 1, "qos": "dear"},
    "other-partition": {"partition": "short", "time": "2"},
    "cancelled": {"cpus_per_task": 4, "sleep_s": 60, "cancel_s": 6},
    "failed": {"gpus_per_node": 1, "sleep_s": 4, "exit": 3},
}
UNDER_MAX_TRES = {
    "max-cpus": {"cpus_per_task": 4, "mem": "1G"},
    "max-gpus": {"nodes": 2, "cpus_per_task": 2, "gpus_per_node": 2, "qos": "half"},
    "max-memory": {"mem": "4500M"},
}
CUT_SHORT = {
    "timed-out": {"cpus_per_task": 2, "time": "1", "sleep_s": 300},
    "node-lost": {"nodes": 4, "sleep_s": 300},
}
SCRIPT = """
    import json, sys, time
    from hpcmagic.launch import slurm
    from hpcmagic.launch.charges import Books
    from hpcmagic.notebook.spending import charged_minutes
    from hpcmagic.profiles import resolve

    shapes, prefix, begun = json.load(sys.stdin), sys.argv[1], {}
    books = Books(wait_s=20.0)
    for name, shape in shapes.items():
        sleep_s, status, cancel_s = shape.pop("sleep_s"), shape.pop("exit", 0), shape.pop("cancel_s", 0)
        asked = {key: value for key, value in shape.items() if value} | {"account": prefix + name}
        options = [f"--{key.replace('_', '-')}={value}" for key, value in asked.items()]
        script = f"#!/bin/sh\\nsleep {sleep_s}\\nexit {status}\\n"
        answer = slurm.run(["sbatch", "--parsable", "--no-requeue", "--output=/dev/null", *options], stdin=script)
        assert answer.returncode == 0, answer.stderr
        begun[name] = {"job": answer.stdout.strip(), "quote": books.quote(resolve({"launcher": "slurm", **asked}, {})),
                       "got": None, "cancel_s": cancel_s}
    deadline = time.monotonic() + 240
    while True:
        said = slurm.run(["squeue", "-h", "-o", "%i %T %M", "--me"]).stdout.splitlines()
        alive = {line.split()[0]: line.split()[1:] for line in said}
        for one in begun.values():
            word, ran = alive.get(one["job"], ("", ""))
            if word == "RUNNING":
                one["got"] = one["got"] or Books(wait_s=20.0).got(one["job"])
                if one["cancel_s"] and (slurm.seconds(ran) or 0) >= one["cancel_s"]:
                    slurm.run(["scancel", one["job"]])
                    one["cancel_s"] = 0
        told = Books(wait_s=20.0).accounted([one["job"] for one in begun.values()])
        if not alive and len(told) == len(begun) and all(one.ended for one in told.values()):
            break
        assert time.monotonic() < deadline, (alive, told)
        time.sleep(0.5)
    print(json.dumps({name: {
        "state": told[one["job"]].state.split()[0],
        "elapsed_s": told[one["job"]].elapsed_s,
        "factor": one["quote"].usage_factor,
        "quoted": one["quote"].tariff.rate(one["quote"].tres),
        "rate": one["quote"].tariff.rate(one["got"] or {}),
        "billing": told[one["job"]].tres.get("billing", 0),
        "minutes": charged_minutes(told[one["job"]], one["quote"]),
    } for name, one in begun.items()}))
"""


@pytest.fixture
def accounts(cluster):
    """Give each shape an account of its own, which alice may use; take them away again."""
    made = []

    def make(shapes):
        names = ",".join(PREFIX + name for name in shapes)
        made.append(names)
        for what in (("account", names), ("user", "alice", f"account={names}", "qos=normal,half,free,dear")):
            done = cluster.hub("sacctmgr", "-i", "add", *what, "cluster=bed")
            assert done.returncode == 0, done.stdout + done.stderr

    yield make
    for names in made:
        cluster.hub("sacctmgr", "-i", "delete", "user", "alice", f"account={names}")
        cluster.hub("sacctmgr", "-i", "delete", "account", names)


def run_jobs(cluster, shapes, timeout=280):
    """Run every shape as alice; give what hpcmagic says of each."""
    asked = json.dumps({name: PLAIN | shape for name, shape in shapes.items()})
    done = cluster.as_user(
        "alice", cluster.python, "-c", textwrap.dedent(SCRIPT), PREFIX, input=asked, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def charged(cluster, shapes):
    """Give the billing-minutes that each account was charged, by the controller's own books."""
    minutes = {}
    for name in shapes:
        said = cluster.hub(
            "scontrol", "-o", "show", "assoc_mgr", "flags=assoc", "users=alice", f"accounts={PREFIX}{name}"
        ).stdout
        (raw,) = re.findall(rf"Account={PREFIX}{name} UserName=alice\S* .*?UsageRaw\S*?=([\d.]+)/", said)
        minutes[name] = float(raw) / S_PER_MINUTE
    return minutes


def settled(cluster, shapes, told):
    """Give what was charged, once the controller has booked the end of every job."""
    deadline = time.monotonic() + 20
    while True:
        minutes = charged(cluster, shapes)
        free = [name for name in shapes if not told[name]["minutes"]]
        if all(minutes[name] > 0 for name in shapes if name not in free) or time.monotonic() > deadline:
            return minutes
        time.sleep(0.5)


def compare(shapes, told, minutes):
    """Print the table of the documentation, and give the shapes that were charged otherwise than told."""
    print("\n| shape | asks for | ended as | ran | told | charged | difference |\n|---|---|---|---|---|---|---|")
    wrong = []
    for name, one in told.items():
        apart = one["minutes"] - minutes[name]
        percent = f"{apart / minutes[name]:+.2%}" if minutes[name] else f"{apart:+.2f}"
        print(f"| {name} | {asked(shapes[name])} | {one['state']} | {one['elapsed_s']:.0f} s | {one['minutes']:.3f} "
              f"| {minutes[name]:.3f} | {percent} |")  # fmt: skip
        if abs(apart) > max(SHARE * minutes[name], MINUTE):
            wrong.append(f"{name}: told {one['minutes']:.3f}, charged {minutes[name]:.3f}")
        second = one["rate"] / S_PER_MINUTE  # short jobs: the same to a second of each, far less than a minute
        if abs(apart) > SHARE * minutes[name] + second:
            wrong.append(f"{name}: apart by more than 1 % and a second: {apart:+.3f}")
        if one["rate"] != pytest.approx(one["quoted"], rel=0.001):
            wrong.append(f"{name}: quoted {one['quoted']} a minute, then {one['rate']}")
    return wrong


def asked(shape):
    """Give what a shape asks for, as options."""
    options = {key: value for key, value in shape.items() if key not in ("sleep_s", "cancel_s", "exit")}
    return " ".join(f"`--{key.replace('_', '-')} {value}`" for key, value in options.items()) or "–"


def test_charged_as_told(cluster, accounts):
    """Of each shape the account is charged what hpcmagic says, within 1 % or one billing minute."""
    accounts(SHAPES)
    told = run_jobs(cluster, SHAPES)
    assert {told[name]["state"] for name in ("one-cpu", "cancelled", "failed")} == {
        "COMPLETED",
        "CANCELLED",
        "FAILED",
    }
    assert told["memory"]["billing"] < told["memory"]["rate"], (
        "SLURM's own number of the job is cut: no word to trust"
    )
    assert compare(SHAPES, told, settled(cluster, SHAPES, told)) == []
    assert told["qos-free"]["minutes"] == 0


def test_max_tres(cluster, accounts):
    """So it is where the largest counts, and not the sum."""
    accounts(UNDER_MAX_TRES)
    with cluster.configured(PriorityFlags="MAX_TRES"):
        told = run_jobs(cluster, UNDER_MAX_TRES)
        assert [round(one["quoted"], 3) for one in told.values()] == [4, 16, 1.099]
        assert compare(UNDER_MAX_TRES, told, settled(cluster, UNDER_MAX_TRES, told)) == []


@pytest.mark.minutes
def test_cut_short(cluster, accounts):
    """A job that its walltime ended, or a node's loss, is charged as told as well."""
    accounts(CUT_SHORT)
    crashed = threading.Timer(25.0, lambda: cluster.verb("crash", "n4"))
    crashed.start()
    try:
        told = run_jobs(cluster, CUT_SHORT)
        assert {name: one["state"] for name, one in told.items()} == {
            "timed-out": "TIMEOUT",
            "node-lost": "NODE_FAIL",
        }
        assert compare(CUT_SHORT, told, settled(cluster, CUT_SHORT, told)) == []
    finally:
        crashed.join()
        cluster.verb("up", timeout=240)
        cluster.verb("reset")
