"""The site's jobqueue.yaml, read by dask-jobqueue itself: what it says of resources, and its part of the script.

jobqueue.yaml ─► site_values ─► Resources (what was left open)
              └► site_script ─► shebang, header without what the session decides, prologue
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hpcmagic.errors import ProfileError
from hpcmagic.profiles import Resources

DECIDED = (  # by the session: what SLURMJob or a site's yaml says of these is left out
    "-n", "--ntasks", "-N", "--nodes", "--ntasks-per-node", "-c", "--cpus-per-task", "-J", "--job-name",
    "-o", "--output", "-e", "--error", "--requeue", "--no-requeue", "--export", "--parsable", "--array", "-a",
)  # fmt: skip
OPTIONS = {  # sbatch's options that are resources of ours
    "-p": "partition", "--partition": "partition", "-A": "account", "--account": "account",
    "-t": "time", "--time": "time", "--mem": "mem", "-q": "qos", "--qos": "qos", "-C": "constraint",
    "--constraint": "constraint", "--gpus-per-node": "gpus_per_node", "--gpus": "gpus_per_node",
    "-G": "gpus_per_node",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SiteScript:
    """What dask-jobqueue makes of the site's configuration."""

    shebang: str
    options: tuple[str, ...]
    prologue: tuple[str, ...]


def site_section(name: str) -> dict[str, Any]:
    """Give a section of the site's or user's own jobqueue.yaml, without dask-jobqueue's shipped defaults.

    Those set a walltime of 30 minutes that nobody asked for.

    Raises
    ------
    ProfileError
        The file is malformed, or has no such section.
    """
    try:
        import dask.config

        sections = dask.config.collect().get("jobqueue") or {}
    except ValueError as error:
        raise ProfileError(
            f"jobqueue.yaml cannot be read: {' '.join(str(error).split())}.", "Mend that file."
        ) from error
    if not isinstance(sections, dict) or not isinstance(sections.get(name) or {}, dict):
        raise ProfileError(f"jobqueue.yaml: section {name!r} is no table of keys.", "Mend that file.")
    section = {str(key).replace("_", "-"): value for key, value in (sections.get(name) or {}).items()}
    if not section and name != "slurm":
        known = ", ".join(map(str, sections)) or "none"
        raise ProfileError(f"jobqueue.yaml has no section {name!r}.", f"Sections there: {known}.")
    return section


def site_values(resources: Resources) -> dict[str, Any]:
    """Give what the site's section says of resources; its extra directives come last, as with sbatch."""
    site = site_section(resources.jobqueue)
    values = {
        "partition": site.get("queue"),
        "account": site.get("account") or site.get("project"),
        "time": site.get("walltime"),
        "mem": site["job-mem"] if site.get("job-mem") is not None else _slurm_size(site.get("memory")),
        "ntasks_per_node": site.get("processes"),
        "interface": site.get("interface"),
        "python": site.get("python"),
    }
    for option in _extra_directives(site):
        name, value = _split(option)
        if OPTIONS.get(name) in ("partition", "account", "time", "mem", "qos", "constraint"):
            values[OPTIONS[name]] = value
    return {name: str(value) for name, value in values.items() if value is not None}


def site_cores(resources: Resources) -> int | None:
    """Give the cores of one job of the site's section: a node of ours."""
    site = site_section(resources.jobqueue)
    cores = site.get("job-cpu") or site.get("cores")
    return None if cores is None else int(cores)


def site_script(resources: Resources) -> SiteScript:
    """Let dask-jobqueue's SLURMJob make its script, and take from it what is not the session's to decide."""
    site = site_section(resources.jobqueue)
    with _signals_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old names in a site's yaml are the site's affair
        import dask.config
        from dask_jobqueue.slurm import SLURMJob

        shipped: dict[str, Any] = next((d["jobqueue"]["slurm"] for d in dask.config.defaults if "jobqueue" in d), {})
        with dask.config.set({"jobqueue": {resources.jobqueue: {**shipped, **site}}}):
            job = SLURMJob(
                cores=resources.cpus_per_task * resources.ntasks_per_node,
                processes=1,
                memory="1GiB",  # must be given; the header's line is ours, from job_mem
                job_mem=resources.mem or None,
                queue=resources.partition or None,
                account=resources.account or None,
                walltime=resources.time or None,
                python=resources.python or sys.executable,
                config_name=resources.jobqueue,
                log_directory=os.sep,  # it would make one; its two options are dropped below
                name="hpcmagic",
            )
    extras = [str(option) for option in job.job_extra_directives]
    lines = [line.removeprefix("#SBATCH").strip() for line in job.job_header.splitlines()]
    header = lines[: len(lines) - len(extras)]
    kept_extras = [option for option in extras if _is_sites(option, resources)]
    said = {OPTIONS.get(_split(option)[0]) for option in kept_extras}
    kept = [
        option for option in header if _is_wanted(option, resources) and OPTIONS.get(_split(option)[0]) not in said
    ]
    prologue = tuple(str(line) for line in job._job_script_prologue or ())  # noqa: SLF001  # the site's lines have no public name
    return SiteScript(job.shebang.strip(), (*kept, *kept_extras), prologue)


def _is_wanted(option: str, resources: Resources) -> bool:
    """Whether a line of SLURMJob's own stands for something that somebody asked for.

    Its own filter matches substrings (`-n 1` drops `-n 16`), and it puts in a memory and a walltime always.
    """
    name = _split(option)[0]
    origin = resources.origins.get(OPTIONS.get(name, ""), "")
    return name not in DECIDED and bool(origin) and "default of" not in origin


def _is_sites(option: str, resources: Resources) -> bool:
    """Whether an extra directive stays: not what the session decides, nor what was asked for otherwise."""
    name, value = _split(option)
    if name in DECIDED:
        return False
    field = "gpus_per_node" if name == "--gres" and value.startswith("gpu") else OPTIONS.get(name, "")
    return "jobqueue.yaml" in resources.origins.get(field, "jobqueue.yaml")


def _extra_directives(site: dict[str, Any]) -> list[str]:
    extras = site.get("job-extra-directives") or site.get("job-extra") or []
    return [str(option) for option in (extras if isinstance(extras, list) else [extras])]


def _split(option: str) -> tuple[str, str]:
    """Give an option's name and value: `--mem=1G`, `--mem 1G`; `-n1`, `-n 1`."""
    words = shlex.split(option, comments=True) or [""]
    if words[0].startswith("--"):
        name, equals, value = words[0].partition("=")
        return name, value if equals else " ".join(words[1:])
    return words[0][:2], words[0][2:].removeprefix("=") or " ".join(words[1:])


def _slurm_size(size: Any) -> str | None:
    """Turn Dask's "120GB" into sbatch's "114440M": Dask counts in thousands, SLURM in 1024s."""
    if size is None:
        return None
    from dask.utils import parse_bytes

    return f"{max(1, int(parse_bytes(size)) >> 20)}M"


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep Ctrl-C working: importing dask_jobqueue 0.9 (its runner.py) turns SIGINT into sys.exit()."""
    set_handler = signal.signal
    signal.signal = lambda *_: None
    try:
        yield
    finally:
        signal.signal = set_handler
