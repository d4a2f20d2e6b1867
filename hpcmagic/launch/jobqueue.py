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
from pathlib import Path
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
HEADER = {"partition": "-p ", "account": "-A ", "mem": "--mem=", "time": "-t "}  # how SLURMJob's own lines begin
OTHERS = {  # dask-jobqueue's sections for what we do not submit to
    "htcondor": "HTCondor", "local": "no batch system", "lsf": "LSF", "moab": "Moab", "oar": "OAR", "pbs": "PBS",
    "sge": "SGE",
}  # fmt: skip
OTHERS_KEYS = {  # keys that tell such a section under another name
    "resource-spec", "lsf-units", "ncpus", "use-stdin", "disk", "cancel-command-extra", "submit-command-extra",
    "memory-per-core-property-name",
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

    Parameters
    ----------
    name
        Of a section; or the path of another YAML file, with `:SECTION` behind it or not.

    Raises
    ------
    ProfileError
        The file is not there or malformed, has no such section, or has it for another batch system.
    """
    file, wanted = _place(name)
    sections = _sections(file)
    if not isinstance(sections.get(wanted) or {}, dict):
        raise ProfileError(f"{file or 'jobqueue.yaml'}: section {wanted!r} is no table of keys.", "Mend that file.")
    section = {str(key).replace("_", "-"): value for key, value in (sections.get(wanted) or {}).items()}
    known = ", ".join(str(one) for one in sections if one not in OTHERS) or "none for SLURM"
    if not section and (wanted != "slurm" or file):
        raise ProfileError(f"{file or 'jobqueue.yaml'} has no section {wanted!r}.", f"Sections there: {known}.")
    foreign = sorted(key for key in OTHERS_KEYS if section.get(key) is not None) if wanted != "slurm" else []
    if wanted in OTHERS or foreign:
        whose = OTHERS.get(wanted) or f"another batch system ({', '.join(foreign)})"
        raise ProfileError(
            f"{file or 'jobqueue.yaml'}: section {wanted!r} is for {whose}, and hpcmagic submits to SLURM.",
            f"Name another with `jobqueue` in your profile, or leave that key out. Sections there: {known}.",
        )
    return section


def passed_over(resources: Resources) -> str:
    """Say that nothing of a jobqueue.yaml is used, where it has other sections only; empty where none is lost."""
    file, wanted = _place(resources.jobqueue)
    sections = _sections(file)
    if wanted in sections or not sections:
        return ""
    others = ", ".join(repr(section) for section in sections)  # on one line, whatever they are called
    return f"jobqueue.yaml has no section {wanted!r}: nothing of it was used (there: {others})"


def _place(name: str) -> tuple[Path | None, str]:
    """Give the file and the section that a profile's `jobqueue` names; no file = jobqueue.yaml where Dask looks."""
    if not name.startswith(("/", "~")):
        return None, name
    file, _, section = name.partition(":")
    return Path(file).expanduser(), section or "slurm"


def _sections(file: Path | None) -> dict[str, Any]:
    if file is not None and not os.access(file, os.R_OK):
        raise ProfileError(
            f"There is no {file} that can be read.", "Mend `jobqueue` in your profile, or leave it out."
        )
    try:
        import dask.config

        content = dask.config.collect() if file is None else dask.config.collect(paths=[str(file)], env={})
    except ValueError as error:
        said = " ".join(str(error).split())
        raise ProfileError(f"jobqueue.yaml cannot be read: {said}.", "Mend that file.") from error
    sections = content.get("jobqueue") or {}
    if not isinstance(sections, dict):
        raise ProfileError("jobqueue.yaml: `jobqueue` is no table of sections.", "Mend that file.")
    return sections


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
    return {name: str(value) for name, value in values.items() if value is not None and not _is_skipped(name, site)}


def site_extras(resources: Resources) -> dict[str, str]:
    """Give the site's extra directives that stay in the script, by option; of repeated ones the last counts."""
    extras = _extra_directives(site_section(resources.jobqueue))
    return dict(_split(option) for option in extras if _is_sites(option, resources))


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

        section = _place(resources.jobqueue)[1]
        shipped: dict[str, Any] = next((d["jobqueue"]["slurm"] for d in dask.config.defaults if "jobqueue" in d), {})
        with dask.config.set({"jobqueue": {section: {**shipped, **site}}}):
            job = SLURMJob(
                cores=resources.cpus_per_task * resources.ntasks_per_node,
                processes=1,
                memory="1GiB",  # must be given; the header's line is ours, from job_mem
                job_mem=resources.mem or None,
                queue=resources.partition or None,
                account=resources.account or None,
                walltime=resources.time or None,
                python=resources.python or sys.executable,
                config_name=section,
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


def _is_skipped(name: str, site: dict[str, Any]) -> bool:
    """Whether the site has SLURMJob's line for a resource left out, and no extra directive asks for it either."""
    line = f"#SBATCH {HEADER[name]}" if name in HEADER else ""
    skips = site.get("job-directives-skip") or site.get("header-skip") or ()
    extras = {OPTIONS.get(_split(option)[0]) for option in _extra_directives(site)}
    return bool(line) and name not in extras and any(str(skip) in line for skip in skips)


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
