"""What SLURM will most likely allocate for what is asked for, by what it tells of the partition and the site."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from hpcmagic.cost import tres_of
from hpcmagic.forms import gpus_of
from hpcmagic.profiles import Resources, canonical


def asked_tres(
    resources: Resources,
    partition: Mapping[str, str],
    config: Mapping[str, str],
    threads: int = 1,
    extras: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Give the TRES that SLURM will most likely allocate for what is asked for; memory in MB.

    Parameters
    ----------
    threads
        Of a core.
    extras
        What the site's own directives ask for besides, by option: ``{"--gres": "gpu:4", "--exclusive": ""}``.

    Notes
    -----
    Whole cores are allocated, and whole nodes where the partition or the site shares none. Where no memory is asked
    for, the partition's default counts, else the site's, else all of a node (slurm.conf(5): DefMemPerCPU). More
    memory than a CPU may have is paid for in CPUs (MaxMemPerCPU).
    """
    whole, extras = _of_a_node(partition), extras or {}
    exclusive = partition.get("OverSubscribe") == "EXCLUSIVE" or config.get("SelectType", "").endswith("linear")
    exclusive = exclusive or extras.get("--exclusive", "user") not in ("user", "mcs")
    cpus = float(math.ceil(resources.ntasks_per_node * resources.cpus_per_task / threads) * threads)
    if exclusive:
        cpus = max(cpus, whole.get("cpu", 0.0))
    mem = _memory(resources.mem, cpus, whole.get("mem", 0.0), partition, config)
    if not resources.mem and (per_cpu := extras.get("--mem-per-cpu")):
        mem = _megabytes(per_cpu) * cpus
    most = _number(partition.get("MaxMemPerCPU") or config.get("MaxMemPerCPU"))
    if most and resources.mem and mem > most * cpus:
        cpus = float(math.ceil(mem / most / threads) * threads)
    gres = _gres(extras, resources)
    kind, asked = gpus_of(resources.gpus_per_node)
    if kind:
        gres[f"gres/gpu:{kind}".lower()] = float(asked)
    gpus = max(float(asked), gres.pop("gres/gpu", 0.0), whole.get("gres/gpu", 0.0) * exclusive)
    a_node = {"cpu": cpus, "mem": mem, "node": 1.0, "gres/gpu": gpus, **gres}
    return {name: count * resources.nodes for name, count in a_node.items() if count}


def _gres(extras: Mapping[str, str], resources: Resources) -> dict[str, float]:
    """Give what a site's own directives ask for in GPUs and other gres, a node: ``--gres=gpu:a100:2,shard:4``."""
    of_a_task = {"--gpus-per-task": float(resources.ntasks_per_node)}
    of_all = dict.fromkeys(("--gpus", "-G"), 1 / resources.nodes)
    shares = {"--gpus-per-node": 1.0, **of_a_task, **of_all}
    asked = [(item, 1.0) for item in extras.get("--gres", "").split(",")]
    asked += [(f"gpu:{item}", share) for name, share in shares.items() for item in extras.get(name, "").split(",")]
    found: dict[str, float] = {}
    for item, share in asked:
        match = re.fullmatch(r"([\w-]+)(?::([A-Za-z_][\w.-]*))?(?::(\d+))?", item.strip())
        if match is None or match[1] == "none":
            continue
        count = float(match[3] or 1) * share
        for name in filter(None, (f"gres/{match[1]}", match[2] and f"gres/{match[1]}:{match[2]}".lower())):
            found[name] = found.get(name, 0.0) + count
    return found


def _memory(asked: str, cpus: float, whole: float, partition: Mapping[str, str], config: Mapping[str, str]) -> float:
    """Give the memory of a node in MB: asked for, or what comes of the defaults."""
    if asked:
        return _megabytes(asked) or whole
    if "MEMORY" not in config.get("SelectTypeParameters", ""):
        return 0.0
    for place in (partition, config):
        if per_cpu := _number(place.get("DefMemPerCPU")):
            return per_cpu * cpus
        if per_node := _number(place.get("DefMemPerNode")):
            return per_node
    return whole


def _megabytes(size: str) -> float:
    """Read one of sbatch's sizes; as SLURM does, up to whole megabytes."""
    nbytes = canonical("mem", size)
    return float(math.ceil(nbytes / (1 << 20))) if isinstance(nbytes, int) else 0.0


def _of_a_node(partition: Mapping[str, str]) -> dict[str, float]:
    """Give what a node of the partition has, on average."""
    nodes = _number(partition.get("TotalNodes")) or 1.0
    return {name: count / nodes for name, count in tres_of(partition.get("TRES", "")).items()}


def _number(text: str | None) -> float:
    return float(text) if text and re.fullmatch(r"\d+", text) else 0.0


def by_core(config: Mapping[str, str]) -> bool:
    """Whether the site allocates whole cores, with all their threads."""
    return re.search(r"CR_(CORE|SOCKET)", config.get("SelectTypeParameters", "").upper()) is not None
