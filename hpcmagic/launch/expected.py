"""What SLURM will most likely allocate for what is asked for, by what it tells of the partition and the site."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from hpcmagic.cost import tres_of
from hpcmagic.profiles import Resources, canonical


def asked_tres(
    resources: Resources, partition: Mapping[str, str], config: Mapping[str, str], threads: int = 1
) -> dict[str, float]:
    """Give the TRES that SLURM will most likely allocate for what is asked for; memory in MB.

    Whole cores are allocated, and whole nodes where the partition or the site shares none. Where no memory is asked
    for, the partition's default counts, else the site's, else all of a node (slurm.conf(5): DefMemPerCPU). More
    memory than a CPU may have is paid for in CPUs (MaxMemPerCPU).
    """
    whole = _of_a_node(partition)
    exclusive = partition.get("OverSubscribe") == "EXCLUSIVE" or config.get("SelectType", "").endswith("linear")
    cpus = float(math.ceil(resources.ntasks_per_node * resources.cpus_per_task / threads) * threads)
    if exclusive:
        cpus = max(cpus, whole.get("cpu", 0.0))
    mem = _memory(resources.mem, cpus, whole.get("mem", 0.0), partition, config)
    most = _number(partition.get("MaxMemPerCPU") or config.get("MaxMemPerCPU"))
    if most and resources.mem and mem > most * cpus:
        cpus = float(math.ceil(mem / most / threads) * threads)
    gpus = max(float(resources.gpus_per_node), whole.get("gres/gpu", 0.0) if exclusive else 0.0)
    nodes = float(resources.nodes)
    tres = {"cpu": cpus * nodes, "mem": mem * nodes, "node": nodes, "gres/gpu": gpus * nodes}
    return {name: count for name, count in tres.items() if count}


def _memory(asked: str, cpus: float, whole: float, partition: Mapping[str, str], config: Mapping[str, str]) -> float:
    """Give the memory of a node in MB: asked for, or what comes of the defaults."""
    if asked:
        return float(canonical("mem", asked) >> 20) or whole
    if "MEMORY" not in config.get("SelectTypeParameters", ""):
        return 0.0
    for place in (partition, config):
        if per_cpu := _number(place.get("DefMemPerCPU")):
            return per_cpu * cpus
        if per_node := _number(place.get("DefMemPerNode")):
            return per_node
    return whole


def _of_a_node(partition: Mapping[str, str]) -> dict[str, float]:
    """Give what a node of the partition has, on average."""
    nodes = _number(partition.get("TotalNodes")) or 1.0
    return {name: count / nodes for name, count in tres_of(partition.get("TRES", "")).items()}


def _number(text: str | None) -> float:
    return float(text) if text and re.fullmatch(r"\d+", text) else 0.0


def by_core(config: Mapping[str, str]) -> bool:
    """Whether the site allocates whole cores, with all their threads."""
    return re.search(r"CR_(CORE|SOCKET)", config.get("SelectTypeParameters", "").upper()) is not None
