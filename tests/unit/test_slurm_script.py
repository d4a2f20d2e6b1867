"""One SLURM job: a site's jobqueue.yaml serves as it is, and nothing gets into the script that nobody asked for."""

import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from two_lines import two_lines

from hpcmagic.errors import HpcMagicError, LaunchError, ProfileError
from hpcmagic.launch import slurm
from hpcmagic.launch.base import JobSpec
from hpcmagic.launch.jobqueue import OTHERS, OTHERS_KEYS, site_extras, site_section
from hpcmagic.launch.slurm import WARN_S, SlurmLauncher
from hpcmagic.notebook import start
from hpcmagic.profiles import resolve
from hpcmagic.rendezvous import SessionDirectory

FOLDER = Path(__file__).with_name("sites")
TOKENS = {
    "JUPYTERHUB_API_TOKEN": "hub-token-0123",
    "JPY_API_TOKEN": "old-hub-token-0123",
    "JPY_SESSION_NAME": "/home/me/secret-project/results.ipynb",
    "JUPYTER_TOKEN": "server-token-0123",
    "AWS_SECRET_ACCESS_KEY": "cloud-key-0123",
    "GITHUB_TOKEN": "git-token-0123",
    "SSH_AUTH_SOCK": "/tmp/ssh-0123/agent",
    "OPENAI_API_KEY": "api-key-0123",
    "DASK_SECRET": "dask-0123",
}


@pytest.fixture
def site(said, tmp_path, monkeypatch):
    """Write the site's jobqueue.yaml; without it there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import dask.config
    folder = tmp_path / "dask"
    folder.mkdir()
    before = list(dask.config.paths)
    dask.config.paths[:] = [str(folder)]
    monkeypatch.setattr(dask.config, "PATH", str(tmp_path / "scratch"))  # dask-jobqueue leaves a file there

    def write(text):
        (folder / "jobqueue.yaml").write_text(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dask.config.refresh()

    write("")
    yield write
    dask.config.paths[:] = before
    dask.config.refresh()


def script(*, session="demo", folder="/shared/sessions", environment=None, **options):
    """The script of a session, made as `start` makes it."""
    launcher = SlurmLauncher()
    resources = launcher.completed(resolve({"launcher": "slurm", **options}, environment or {}))
    return launcher.script(JobSpec(session, SessionDirectory(Path(folder, session)), resources))


def options_of(text):
    """The script's options, by name: what sbatch makes of its lines, of repeated ones the last."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#SBATCH "):
            name, value = re.fullmatch(r"#SBATCH (--[\w-]+|-\w)[ =]?(.*)", line).groups()
            found[LONG.get(name, name)] = value
    return found


LONG = {
    "-p": "--partition", "-A": "--account", "-t": "--time", "-q": "--qos", "-C": "--constraint", "-n": "--ntasks",
    "-N": "--nodes", "-c": "--cpus-per-task", "-J": "--job-name", "-o": "--output", "-e": "--error",
    "-L": "--licenses", "-G": "--gpus",
}  # fmt: skip


def body_of(text):
    """The script's lines that the shell runs."""
    return [line for line in text.splitlines()[1:] if line and not line.startswith("#")]


# ---- without a site's configuration


def test_plain_script(site):
    """The whole script of a plain request: sizes, one step, and nothing that was not asked for."""
    options = options_of(script(nodes=4, time="1:00:00"))
    assert options.pop("--export")
    assert options == {
        "--job-name": "hpcmagic", "--nodes": "4", "--ntasks-per-node": "1", "--cpus-per-task": "1",
        "--time": "1:00:00", "--output": "/dev/null", "--no-requeue": "", "--signal": f"B:USR1@{WARN_S}",
    }  # fmt: skip


def test_options_before_commands(site):
    """sbatch reads options up to the first command: all of them stand before it, behind the shebang."""
    lines = script(nodes=2, partition="debug", mem="1G").splitlines()
    assert lines[0].startswith("#!")
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    assert all(line.startswith("#SBATCH ") for line in lines[1:first])
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


def test_keeper_is_the_batch_step(site):
    """The last line becomes the keeper itself, with the session's directory."""
    last = shlex.split(script().splitlines()[-1])
    assert last == ["exec", sys.executable, "-m", "hpcmagic.keeper", "/shared/sessions/demo"]
    assert shlex.split(script(python="/opt/my env/python").splitlines()[-1])[1] == "/opt/my env/python"


@pytest.mark.parametrize("folder", ["/scratch/a b", "/scratch/$(id)", "/scratch/it's", "/scratch/a;b", "/scratch/-n"])
def test_directory_is_quoted(site, folder):
    """Whatever the directory is called, the shell sees one word."""
    text = script(folder=folder)
    assert shlex.split(text.splitlines()[-1])[-1] == f"{folder}/demo"
    check = next(line for line in text.splitlines() if line.startswith("[ -d "))
    assert shlex.split(check)[2] == f"{folder}/demo"
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_directory_out_of_sight(site):
    """A node that does not see the session's directory says so by an exit status of its own, before anything else."""
    text = script(folder="/nowhere/at/all", prologue=["touch /nowhere/prologue"])
    done = subprocess.run(["bash"], input=text, text=True, capture_output=True, check=False, timeout=10)
    assert done.returncode == slurm.NO_SUCH_DIRECTORY
    assert done.stdout + done.stderr == ""


def test_output_is_private(site):
    """SLURM itself writes no output file; the job writes its own, 0600, into the session's directory."""
    text = script()
    assert options_of(text)["--output"] == "/dev/null"
    assert "--error" not in options_of(text)
    redirection = next(line for line in body_of(text) if "job.log" in line)
    assert redirection.index("umask 077") < redirection.index("job.log")


def test_never_requeued(site):
    """A job is never run a second time by SLURM: its session's variables are gone."""
    site("jobqueue:\n  slurm:\n    job-extra-directives: ['--requeue']\n")
    lines = script().splitlines()
    assert lines.count("#SBATCH --no-requeue") == 1
    assert "#SBATCH --requeue" not in lines


# ---- what the job may see


def test_exports_a_list(site, monkeypatch):
    """A job gets an explicit list of variables: those it needs and those that the profile names."""
    for name, value in TOKENS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("MY_DATA", "/data")
    text = script(env=["MY_DATA", "NOT_SET_HERE"])
    exported = options_of(text)["--export"].split(",")
    assert {"PATH", "HOME", "OMP_NUM_THREADS", "MY_DATA"} <= set(exported)
    assert "NOT_SET_HERE" not in exported
    assert not {"ALL", "NONE", *TOKENS} & set(exported)
    assert len(set(exported)) == len(exported)
    for token in TOKENS.values():
        assert token not in text


def test_exports_by_name_only(site, monkeypatch):
    """Values of variables stand in no script: it is kept by SLURM, and shown by `--dry-run`."""
    monkeypatch.setenv("MY_SECRET", "s3cr3t,value=1")
    assert "s3cr3t" not in script(env=["MY_SECRET"])


@pytest.mark.parametrize("extra", ["--export=ALL", "--export ALL", "--export=NONE"])
def test_exports_whatever_the_site_says(site, extra):
    """A site that exports everything does not reach the hub's tokens that way."""
    site(f"jobqueue:\n  slurm:\n    job-extra-directives: ['{extra}']\n")
    assert script().count("--export") == 1
    assert "PATH" in options_of(script())["--export"]


def test_srun_passes_it_on(site):
    """sbatch's --export would keep srun from passing on what the prologue sets: the script undoes that first."""
    assert body_of(script(prologue=["export A=1"]))[0].startswith("unset SLURM_EXPORT_ENV")


def test_no_notebook_in_names(site, monkeypatch):
    """What SLURM shows to everybody, name and comment, tells nothing of the notebook."""
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/me/secret-project/results.ipynb")
    text = script(session="results-1a2b3c4d")
    shown = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert not any(word in line for line in shown for word in ("results", "secret", "/home"))
    assert options_of(text)["--job-name"] == "hpcmagic"
    assert "--comment" not in options_of(text)


# ---- the site's configuration


FULL = """
jobqueue:
  slurm:
    name: dask-worker
    cores: 64
    memory: 115GB
    processes: 4
    queue: regular
    account: m1234
    walltime: '00:10:00'
    interface: ib0
    python: /opt/site/python
    job-script-prologue: ['module load openmpi', 'export UCX_TLS=rc']
    job-extra-directives: ['-C haswell', '-L project,SCRATCH', '--mail-user=me@site.org']
    log-directory: /no/such/folder/logs
    local-directory: $SCRATCH
    death-timeout: 60
    shebang: '#!/bin/bash -l'
"""


def test_site_honoured(site):
    """Queue, account, walltime, memory, cores, prologue, extra directives and shebang are used as they are."""
    site(FULL)
    text = script(nodes=2)
    options = options_of(text)
    assert options["--partition"] == "regular"
    assert options["--account"] == "m1234"
    assert options["--time"] == "00:10:00"
    assert options["--constraint"] == "haswell"
    assert options["--licenses"] == "project,SCRATCH"
    assert options["--mail-user"] == "me@site.org"
    assert (options["--nodes"], options["--ntasks-per-node"], options["--cpus-per-task"]) == ("2", "4", "16")
    assert options["--mem"] == f"{int(115e9) >> 20}M"
    assert text.startswith("#!/bin/bash -l\n")
    body = body_of(text)
    assert body.index("module load openmpi") < body.index("export UCX_TLS=rc") < len(body) - 1
    assert shlex.split(body[-1])[1] == "/opt/site/python"


def test_site_says_where_from(site):
    """What the site filled in is traced to its file and section."""
    site(FULL)
    resources = SlurmLauncher().completed(resolve({"nodes": 2}, {}))
    for name in ("partition", "account", "time", "mem", "ntasks_per_node", "cpus_per_task", "interface", "python"):
        assert "jobqueue.yaml" in resources.origins[name]
    assert resources.origins["nodes"] == "asked for"
    assert resources.interface == "ib0"


def test_asked_beats_site(site):
    """What was asked for replaces what the site says, each value by itself."""
    site(FULL)
    asked = {
        "partition": "debug", "account": "m9", "time": "5", "mem": "2G", "ntasks_per_node": 2, "cpus_per_task": 3,
        "python": "/my/python",
    }  # fmt: skip
    text = script(nodes=2, **asked)
    options = options_of(text)
    assert (options["--partition"], options["--account"], options["--time"]) == ("debug", "m9", "5")
    assert (options["--mem"], options["--ntasks-per-node"], options["--cpus-per-task"]) == ("2G", "2", "3")
    assert shlex.split(text.splitlines()[-1])[1] == "/my/python"
    for name in ("--partition", "-p ", "--account", "-A ", "--time", "-t ", "--mem="):
        assert sum(line.startswith(f"#SBATCH {name}") for line in text.splitlines()) <= 1


@pytest.mark.parametrize(
    ("extra", "asked"),
    [
        ("--partition=gpu", {"partition": "debug"}),
        ("-p gpu", {"partition": "debug"}),
        ("--account=abc@v100", {"account": "m9"}),
        ("-A abc@v100", {"account": "m9"}),
        ("--time=2:00:00", {"time": "5"}),
        ("-t 2:00:00", {"time": "5"}),
        ("--mem=64G", {"mem": "2G"}),
        ("--qos=long", {"qos": "short"}),
        ("-q long", {"qos": "short"}),
        ("-C haswell", {"constraint": "knl"}),
        ("--constraint=haswell", {"constraint": "knl"}),
        ("--gpus-per-node=4", {"gpus_per_node": "2"}),
        ("--nodes=8", {"nodes": "2"}),
        ("-N 8", {"nodes": "2"}),
        ("--cpus-per-task=8", {"cpus_per_task": "2"}),
        ("--ntasks-per-node=8", {"ntasks_per_node": "2"}),
    ],
)
def test_asked_beats_extra_directives(site, extra, asked):
    """Of an option that was asked for and that the site's extra directives have too, the asked one holds."""
    site(f"jobqueue:\n  slurm:\n    job-extra-directives: ['{extra}']\n")
    ((name, value),) = asked.items()
    assert options_of(script(**asked))[f"--{name.replace('_', '-')}"] == value


@pytest.mark.parametrize("extra", ["--gres=gpu:4", "--gres=gpu:v100:4", "--gpus=4", "-G 4"])
def test_asked_gpus_beat_extra_directives(site, extra):
    """GPUs that were asked for replace the site's, whichever of SLURM's ways it took to ask for them."""
    site(f"jobqueue:\n  slurm:\n    job-extra-directives: ['{extra}']\n")
    lines = [line for line in script(gpus_per_node=2).splitlines() if "gpu" in line or line.startswith("#SBATCH -G")]
    assert lines == ["#SBATCH --gpus-per-node=2"]


@pytest.mark.parametrize(
    "extra",
    [
        "--partition=gpu", "-A abc@v100", "--time=2:00:00", "-t 2:00:00", "--mem=0", "--mem-per-cpu=4G", "--qos=long",
        "-C haswell", "--gres=gpu:4", "--gpus-per-node=4", "--exclusive", "--hint=nomultithread", "--mail-type=END",
        "--reservation=course", "-x n7",
    ],
)  # fmt: skip
def test_extra_directives_kept(site, extra):
    """An extra directive of the site stays as it is, unless the request decides the same."""
    site(f"jobqueue:\n  slurm:\n    job-extra-directives: ['{extra}']\n")
    assert f"#SBATCH {extra}" in script(nodes=2).splitlines()


@pytest.mark.parametrize(
    "extra", ["-n 16", "-n16", "--ntasks=16", "-n 1", "-N 3", "-c 9", "-J mine", "--job-name=mine"]
)
def test_session_decides_its_sizes(site, extra):
    """Tasks, nodes and names are the session's: whatever a site's file says of them would break the MPI world."""
    site(f"jobqueue:\n  slurm:\n    job-extra-directives: ['{extra}', '--nodelist=n16,n1']\n")
    text = script(nodes=4)
    assert f"#SBATCH {extra}" not in text.splitlines()
    options = options_of(text)
    assert "--ntasks" not in options
    assert (options["--nodes"], options["--ntasks-per-node"], options["--cpus-per-task"]) == ("4", "1", "1")
    assert options["--job-name"] == "hpcmagic"
    assert options["--nodelist"] == "n16,n1"


def test_one_task_trap(site):
    """dask-jobqueue's own `-n 1` is left out by its name: options that begin or look alike stay."""
    site("jobqueue:\n  slurm:\n    job-extra-directives: ['--nice=1', '--network=x', '--no-kill', '-n 1']\n")
    lines = script(nodes=4).splitlines()
    assert not [line for line in lines if line.startswith("#SBATCH -n")]
    assert {"#SBATCH --nice=1", "#SBATCH --network=x", "#SBATCH --no-kill"} <= set(lines)


@pytest.mark.parametrize(
    ("skip", "gone"), [("--mem", "--mem"), ("-A", "--account"), ("-p", "--partition"), ("-t", "--time")]
)
def test_directives_skipped(site, skip, gone):
    """A line that the site leaves out, because its SLURM refuses it, is left out."""
    site(f"{FULL}    job-directives-skip: ['{skip}']\n")
    assert gone not in options_of(script(nodes=2))
    assert "--licenses" in options_of(script(nodes=2))


def test_walltime_that_was_asked_for_is_not_skipped(site):
    """What somebody asked for, or a budget has cut, ends the job, though the site has its own walltime left out."""
    site(f"{FULL}    job-directives-skip: ['-t']\n")
    assert options_of(script(time="7"))["--time"] == "7"
    site(FULL)
    assert script(time="7").count("-t ") + script(time="7").count("--time=") == 1


def test_skipped_memory_is_not_asked_for(site):
    """Memory that the site's file names but has left out is no part of what is asked for, and told."""
    site("jobqueue:\n  slurm:\n    memory: 160GB\n    job-directives-skip: ['--mem']\n")
    assert SlurmLauncher().completed(resolve({"launcher": "slurm"})).mem == ""
    site("jobqueue:\n  slurm:\n    memory: 160GB\n")
    assert SlurmLauncher().completed(resolve({"launcher": "slurm"})).mem == "152587M"


def test_site_directives_that_cost(site):
    """What the site's own directives ask for is told to who computes the price, unless the request decides it."""
    site("jobqueue:\n  slurm:\n    job-extra-directives: ['--gres=gpu:4', '--exclusive', '-n 16']\n")
    assert site_extras(resolve({"launcher": "slurm"})) == {"--gres": "gpu:4", "--exclusive": ""}
    assert site_extras(resolve({"launcher": "slurm", "gpus_per_node": 1})) == {"--exclusive": ""}


def test_empty_directives_skipped(site):
    """The way to skip a line whose value a site wants in another form: skip it, and give it as an extra."""
    site(
        "jobqueue:\n  slurm:\n    memory: 10GB\n    job-directives-skip: ['--mem']\n"
        "    job-extra-directives: ['--mem-per-cpu=2G']\n"
    )
    options = options_of(script(nodes=2))
    assert "--mem" not in options
    assert options["--mem-per-cpu"] == "2G"


@pytest.mark.parametrize(
    ("setting", "mem"),
    [
        ("memory: 120GB", f"{int(120e9) >> 20}M"),
        ("memory: 120GiB", "122880M"),
        ("memory: '25 GB'", f"{int(25e9) >> 20}M"),
        ("memory: 4000000000", f"{4_000_000_000 >> 20}M"),
        ("job-mem: 120GB", "120GB"),
        ("job-mem: 4G", "4G"),
        ("job-mem: 5000", "5000"),
        ("job-mem: '0'", "0"),
        ("job-mem: 500M\n    memory: 100GB", "500M"),
    ],
)
def test_memory(site, setting, mem):
    """`memory` is Dask's and counts in thousands; `job-mem` is SLURM's own, and reaches it as it is."""
    site(f"jobqueue:\n  slurm:\n    {setting}\n")
    assert in_mb(options_of(script())["--mem"]) == in_mb(mem)


def in_mb(mem):
    """Megabytes as SLURM reads them."""
    number, unit = re.fullmatch(r"(\d+)([KMGT]?)B?", mem).groups()
    return int(number) * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[unit]


@pytest.mark.parametrize(
    ("cores", "options", "cpus"),
    [
        ("cores: 64\n    processes: 4", {}, "16"),
        ("cores: 64\n    processes: 4", {"ntasks_per_node": 8}, "8"),
        ("cores: 64", {"ntasks_per_node": 4}, "16"),
        ("cores: 64\n    job-cpu: 32", {}, "32"),
        ("cores: 2", {"ntasks_per_node": 4}, "1"),
        ("cores: 64", {"cpus_per_task": 2}, "2"),
        ("cores: 64", {"ntasks": 8, "nodes": 2}, "16"),
    ],
)
def test_cores(site, cores, options, cpus):
    """A site's cores a node are shared by the ranks on it."""
    site(f"jobqueue:\n  slurm:\n    {cores}\n")
    assert options_of(script(**options))["--cpus-per-task"] == cpus


def test_asked_ranks_beat_the_sites_processes(site):
    """Whoever asks for so many ranks gets as many: the site's processes a node do not multiply them."""
    site("jobqueue:\n  slurm:\n    cores: 64\n    processes: 4\n")
    options = options_of(script(nodes=4, ntasks=4))
    assert (options["--nodes"], options["--ntasks-per-node"], options["--cpus-per-task"]) == ("4", "1", "64")


def test_underscores_and_old_names(site):
    """Keys with underscores, and the names of older versions, mean what they meant."""
    site(
        "jobqueue:\n  slurm:\n    project: old-account\n    job_cpu: 4\n    env-extra: ['export A=1']\n"
        "    job_extra: ['--exclusive']\n    header_skip: ['--mem']\n    memory: 1GB\n"
    )
    text = script()
    options = options_of(text)
    assert options["--account"] == "old-account"
    assert options["--cpus-per-task"] == "4"
    assert "--exclusive" in options
    assert "--mem" not in options
    assert "export A=1" in body_of(text)


def test_own_section(site):
    """A profile may name another section of the site's file."""
    site("jobqueue:\n  slurm:\n    queue: cpu\n  slurm-gpu:\n    queue: gpu\n    walltime: '2:00:00'\n")
    assert options_of(script())["--partition"] == "cpu"
    options = options_of(script(jobqueue="slurm-gpu"))
    assert (options["--partition"], options["--time"]) == ("gpu", "2:00:00")


def test_section_not_there(site):
    """A section that no file has is named, with those that are there."""
    site("jobqueue:\n  slurm: {queue: cpu}\n  gpu: {queue: gpu}\n")
    with pytest.raises(ProfileError, match="'gpuu'") as error:
        script(jobqueue="gpuu")
    assert "gpu" in error.value.mend
    two_lines(error)


@pytest.mark.parametrize(
    "text", ["jobqueue:\n", "jobqueue:\n  slurm:\n", "jobqueue: {}\n", "# nothing\n", "other: 1\n"]
)
def test_empty_configuration(site, text):
    """A file of which all is commented out says nothing."""
    site(text)
    assert options_of(script(time="5"))["--nodes"] == "1"


def test_malformed_configuration(site, tmp_path):
    """A jobqueue.yaml that is no YAML is named in two lines, like any other file that cannot be read."""
    (tmp_path / "dask" / "jobqueue.yaml").write_text("jobqueue:\n  slurm: [\n")
    with pytest.raises(HpcMagicError, match=r"jobqueue\.yaml") as error:
        site_section("slurm")
    two_lines(error)


def test_shipped_defaults_are_not_the_sites(site):
    """dask-jobqueue's own defaults, which nobody asked for, are not taken for the site's."""
    site("jobqueue:\n  pbs:\n    queue: x\n")
    script()
    assert site_section("slurm") == {}


# ---- real sites


SITES = {
    "cpu-constraint": {
        "--partition": "debug",
        "--time": "00:10:00",
        "--constraint": "haswell",
        "--licenses": "project, scratch",
        "--ntasks-per-node": "4",
        "--cpus-per-task": "16",
    },
    "whole-node": {
        "--partition": "compute",
        "--time": "00:40:00",
        "--cpus-per-task": "24",
        "--ntasks-per-node": "1",
    },
    "two-schedulers": {
        "--account": "PROJ0123",
        "--constraint": "analysis",
        "--cpus-per-task": "1",
        "--time": "00:20:00",
    },
    "bare-walltime": {
        "--partition": "high_mem",
        "--account": "arm",
        "--time": "00:30:00",
        "--cpus-per-task": "6",
        "--comment": "group-arm",
    },
    "gpu-account": {
        "--account": "abc@v100",
        "--gres": "gpu:4",
        "--qos": "qos_gpu-t3",
        "--hint": "nomultithread",
        "--time": "20:00:00",
        "--ntasks-per-node": "4",
        "--cpus-per-task": "10",
        "--mem": None,
        "--partition": None,
    },
    "all-keys": {"--partition": "batch", "--account": None, "--time": "00:15:00", "--cpus-per-task": "24"},
    "cloud": {"--mem": None, "--time": "24:00:00", "--ntasks-per-node": "8", "--cpus-per-task": "4"},
    "pbs-group-list": {"--partition": None, "--account": None, "--time": None, "--cpus-per-task": "1"},
    "pbs-many-processes": {"--partition": None, "--account": None, "--time": None, "--ntasks-per-node": "1"},
}


def test_every_site_is_tried():
    """Each file of the folder is one of the sites below."""
    assert {path.stem for path in FOLDER.iterdir()} == set(SITES)


@pytest.mark.parametrize(("name", "expected"), SITES.items(), ids=SITES)
def test_real_sites(site, name, expected):
    """Files as dask-jobqueue's users have them go through as they are, sizes and names apart."""
    site((FOLDER / f"{name}.yaml").read_text())
    text = script(nodes=2)
    options = options_of(text)
    assert {name: options.get(name) for name in expected} == expected
    assert options["--nodes"] == "2"
    assert "--ntasks" not in options
    assert "dask" not in text
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


PASSED_OVER = "# jobqueue.yaml has no section 'slurm': nothing of it was used (there: 'pbs')"


@pytest.mark.parametrize("name", [name for name in SITES if name.startswith("pbs")])
def test_sites_without_slurm(site, name):
    """What a site has for another batch system only is left alone, and the script says so."""
    site((FOLDER / f"{name}.yaml").read_text())
    text = script(nodes=2)
    assert text.splitlines().count(PASSED_OVER) == 1
    assert not re.search(r"resource|mpi_1|high_mem|-W |-m n", text)


@pytest.mark.parametrize("text", ["", "jobqueue:\n  slurm:\n", "jobqueue:\n  pbs: {queue: x}\n  slurm: {queue: y}\n"])
def test_nothing_passed_over(site, text):
    """Where the site says nothing, or has a section for SLURM as well, no line speaks of the others."""
    site(text)
    assert "jobqueue.yaml" not in script()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, f"  {name}: {{queue: regular, walltime: '00:30:00', job-extra: ['-W x']}}\n") for name in OTHERS),
        ("big", "  big: {queue: regular, resource-spec: 'select=1:ncpus=36'}\n"),
        ("big", "  big: {queue: regular, lsf-units: mb}\n"),
        ("big", "  big: {cores: 4, disk: 10GB}\n"),
    ],
)
def test_other_batch_systems(site, name, text):
    """A section for another batch system is refused by its name, or by keys that only those have; SLURM's are named."""
    site(f"jobqueue:\n{text}  gpu: {{queue: gpu}}\n")
    with pytest.raises(ProfileError, match=f"section '{name}' is for .*, and hpcmagic submits to SLURM") as error:
        script(jobqueue=name)
    assert "gpu" in two_lines(error).mend
    assert options_of(script(jobqueue="gpu"))["--partition"] == "gpu"


def test_other_batch_systems_known():
    """The sections and keys that are refused are those that dask-jobqueue has for others than SLURM, all of them."""
    shipped = Path(find_spec("dask_jobqueue").origin).with_name("jobqueue.yaml")
    sections = yaml.safe_load(shipped.read_text())["jobqueue"]
    assert set(OTHERS) == set(sections) - {"slurm"}
    others = {key for name in OTHERS for key in sections[name]} - set(sections["slurm"])
    assert others - {"project", "mem"} == OTHERS_KEYS


@pytest.mark.parametrize(("behind", "queue"), [("", "cpu"), (":slurm", "cpu"), (":gpu", "gpu")])
def test_another_file(site, tmp_path, monkeypatch, behind, queue):
    """A profile may name a file anywhere, and a section of it; what Dask has else then says nothing."""
    site("jobqueue:\n  slurm: {queue: elsewhere, account: other}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DASK_JOBQUEUE__SLURM__ACCOUNT", "another")
    monkeypatch.setenv("DASK_JOBQUEUE__GPU__ACCOUNT", "another")
    (tmp_path / "site.yaml").write_text("jobqueue:\n  slurm: {queue: cpu}\n  gpu: {queue: gpu}\n")
    for folder in ("~", tmp_path):
        options = options_of(script(jobqueue=f"{folder}/site.yaml{behind}"))
        assert options["--partition"] == queue
        assert "--account" not in options


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("none.yaml", "There is no .*none.yaml that can be read"),
        ("site.yaml:gpuu", "site.yaml has no section 'gpuu'"),
        ("site.yaml", "site.yaml has no section 'slurm'"),
        ("site.yaml:pbs", "site.yaml: section 'pbs' is for PBS"),
        ("broken.yaml", "cannot be read"),
        ("list.yaml", "is no table of sections"),
    ],
)
def test_another_file_that_is_wrong(site, tmp_path, file, message):
    """A file that was named must be there, be YAML, and have the section."""
    (tmp_path / "site.yaml").write_text("jobqueue:\n  pbs: {queue: cpu}\n  gpu: {queue: gpu}\n")
    (tmp_path / "broken.yaml").write_text("jobqueue: [\n")
    (tmp_path / "list.yaml").write_text("jobqueue: [1]\n")
    with pytest.raises(ProfileError, match=message) as error:
        script(jobqueue=f"{tmp_path}/{file}")
    two_lines(error)


# ---- the walltime


def test_no_walltime_made_up(site):
    """dask-jobqueue's shipped 30 minutes are never used: the partition's default holds, and is shown."""
    resources = SlurmLauncher().completed(resolve({"nodes": 2, "partition": "long"}, {}))
    assert resources.time == "7-00:00:00"
    assert resources.origins["time"] == "the default of partition long"
    assert "--time" not in options_of(script(nodes=2))
    assert "00:30:00" not in script(nodes=2)


def test_walltime_of_an_empty_site(site):
    """A site whose file has no walltime does not get the shipped one either."""
    site("jobqueue:\n  slurm:\n    queue: debug\n")
    resources = SlurmLauncher().completed(resolve({}, {}))
    assert (resources.time, resources.origins["time"]) == ("30:00", "the default of partition debug")
    assert "--time" not in options_of(script())


def test_walltime_in_extra_directives(site):
    """A walltime that a site gives as an extra directive is the one that is used, and the one that is shown."""
    site("jobqueue:\n  slurm:\n    job-extra-directives: ['--time=2:00:00']\n")
    assert options_of(script())["--time"] == "2:00:00"
    assert SlurmLauncher().completed(resolve({}, {})).time == "2:00:00"


# ---- submitting


@pytest.fixture
def spec(tmp_path):
    """A session to submit."""
    directory = SessionDirectory.create(tmp_path / "sessions" / "demo")
    return JobSpec("demo", directory, resolve({"launcher": "slurm", "nodes": 2, "time": "5"}, {}))


@pytest.mark.parametrize(("stdout", "job_id"), [("8123\n", "8123"), ("8123;cluster\n", "8123")])
def test_submit(site, said, spec, stdout, job_id):
    """The script goes into sbatch as it is shown, and into the session's directory; sbatch's answer is the id."""
    said["sbatch"] = stdout
    launcher = SlurmLauncher()
    assert launcher.submit(spec) == job_id
    command, stdin = said["asked"][-1]
    assert command == ["sbatch", "--parsable"]
    assert stdin == launcher.script(spec) == spec.directory.script.read_text()
    assert spec.directory.script.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("options", "commands"),
    [({}, ["sinfo", "sinfo", "sbatch"]), ({"launcher": "slurm", "time": "5"}, ["sbatch"])],
)
def test_what_a_start_asks(site, said, spec, options, commands):
    """A start asks SLURM for what no profile says, and submits: no more (docs/operators.md counts it)."""
    said["sbatch"] = "8123\n"
    resources, launcher = start.plan({"nodes": 2, **options})
    launcher.submit(replace(spec, resources=launcher.completed(resources)))
    assert [command[0] for command, _ in said["asked"]] == commands


def test_submit_refused(site, said, spec):
    """A refusal is told in SLURM's words."""
    said["sbatch"] = (1, "", "sbatch: error: Batch job submission failed: Invalid partition name specified\n")
    with pytest.raises(LaunchError, match="Invalid partition name specified"):
        SlurmLauncher().submit(spec)


def test_sites_own_warning(site):
    """A site that has SLURM send a signal before the walltime keeps its own; the script is never ended by it."""
    site("jobqueue:\n  slurm:\n    job-extra-directives: ['--signal=B:USR1@300']\n")
    text = script()
    assert [line for line in text.splitlines() if "--signal" in line] == ["#SBATCH --signal=B:USR1@300"]
    assert text.index("trap '' USR1") < text.index("exec ")
