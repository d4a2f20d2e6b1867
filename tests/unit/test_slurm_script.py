"""One SLURM job: a site's jobqueue.yaml serves as it is, and nothing gets into the script that nobody asked for."""

import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from hpcmagic.errors import HpcMagicError, LaunchError, ProfileError
from hpcmagic.launch import slurm
from hpcmagic.launch.base import JobSpec
from hpcmagic.launch.slurm import SlurmLauncher, _from_squeue, answers, default_time, seconds, site_section
from hpcmagic.launch.slurm_words import MEANINGS, refusal
from hpcmagic.profiles import Resources, resolve
from hpcmagic.rendezvous import SessionDirectory

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
SINFO = "debug*|30:00|1:00:00\nlong|n/a|7-00:00:00\nforever|NONE|infinite\n"


def sinfo(command):
    """Answer as sinfo does: of the partition that was asked for, or of all."""
    asked = next((word.partition("=")[2] for word in command if word.startswith("--partition=")), "")
    return "".join(row for row in SINFO.splitlines(keepends=True) if row.startswith(asked))


@pytest.fixture
def said(monkeypatch):
    """Answer SLURM's commands: by the command's name, text or (exit status, stdout, stderr). None is ever run."""
    answers_to = {"sinfo": sinfo}
    asked = []

    def run(command, *, stdin=None):
        asked.append((list(command), stdin))
        answer = answers_to.get(command[0], (127, "", f"{command[0]} was not expected"))
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer = answer(command)
        status, stdout, stderr = answer if isinstance(answer, tuple) else (0, answer, "")
        return subprocess.CompletedProcess(command, status, stdout, stderr)

    monkeypatch.setattr(slurm, "run", run)
    answers_to["asked"] = asked
    return answers_to


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
    "-N": "--nodes", "-c": "--cpus-per-task", "-J": "--job-name", "-o": "--output", "-e": "--error", "-L": "--licenses",
    "-G": "--gpus",
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
        "--job-name": "hpcmagic", "--nodes": "4", "--ntasks-per-node": "1", "--cpus-per-task": "1", "--time": "1:00:00",
        "--output": "/dev/null", "--no-requeue": "",
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
    """Queue, account, walltime, memory, cores, prologue, extra options and shebang of the site are used as they are."""
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


@pytest.mark.parametrize("extra", ["-n 16", "-n16", "--ntasks=16", "-n 1", "-N 3", "-c 9", "-J mine", "--job-name=mine"])
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
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("text", ["jobqueue:\n", "jobqueue:\n  slurm:\n", "jobqueue: {}\n", "# nothing\n", "other: 1\n"])
def test_empty_configuration(site, text):
    """A file of which all is commented out says nothing."""
    site(text)
    assert options_of(script(time="5"))["--nodes"] == "1"


def test_malformed_configuration(site, tmp_path):
    """A jobqueue.yaml that is no YAML is named in two lines, like any other file that cannot be read."""
    (tmp_path / "dask" / "jobqueue.yaml").write_text("jobqueue:\n  slurm: [\n")
    with pytest.raises(HpcMagicError, match="jobqueue.yaml") as error:
        site_section("slurm")
    assert len(str(error.value).splitlines()) == 2


def test_shipped_defaults_are_not_the_sites(site):
    """dask-jobqueue's own defaults, which nobody asked for, are not taken for the site's."""
    site("jobqueue:\n  pbs:\n    queue: x\n")
    script()
    assert site_section("slurm") == {}


# ---- real sites


SITES = {
    "NERSC Cori": (
        "jobqueue:\n    slurm:\n        cores: 64\n        memory: 115GB\n        processes: 4\n        queue: debug\n"
        "        walltime: '00:10:00'\n        job-extra: ['-C haswell', '-L project, SCRATCH, cscratch1']\n",
        {"--partition": "debug", "--time": "00:10:00", "--constraint": "haswell", "--licenses": "project, SCRATCH, cscratch1",
         "--ntasks-per-node": "4", "--cpus-per-task": "16"},
    ),
    "SDSC Comet": (
        "jobqueue:\n  slurm:\n    name: dask-worker\n    cores: 24\n    memory: 120GB\n    processes: 1\n"
        "    interface: ib0\n    death-timeout: 60\n    local-directory: /scratch/$USER/$SLURM_JOB_ID\n"
        "    queue: compute\n    walltime: '00:30:00'\n    job-mem: 120GB\n",
        {"--partition": "compute", "--time": "00:30:00", "--cpus-per-task": "24", "--ntasks-per-node": "1"},
    ),
    "NCAR's old DAV nodes": (
        "jobqueue:\n  slurm:\n    name: dask-worker\n    cores: 1\n    memory: '25 GB'\n    processes: 1\n"
        "    interface: ib0\n    account: PXYZ123\n    walltime: '00:30:00'\n    job-extra: {-C geyser}\n",
        {"--account": "PXYZ123", "--constraint": "geyser", "--cpus-per-task": "1", "--time": "00:30:00"},
    ),
    "ARM-like": (
        "jobqueue:\n  slurm:\n    name: dask-worker\n    cores: 36\n    memory: 270GB\n    processes: 6\n"
        "    interface: ib0\n    local-directory: $localscratch\n    queue: high_mem\n    account: arm\n"
        "    walltime: 00:30:00\n    job-extra: ['--comment=cades-arm']\n",
        {"--partition": "high_mem", "--account": "arm", "--time": "00:30:00", "--cpus-per-task": "6", "--comment": "cades-arm"},
    ),
    "Jean-Zay-like, GPUs": (
        "jobqueue:\n  slurm:\n    cores: 40\n    memory: 160GB\n    processes: 4\n    walltime: '20:00:00'\n"
        "    job-directives-skip: ['--mem', '-A']\n    account: abc\n"
        "    job-extra-directives: ['--account=abc@v100', '--gres=gpu:4', '--qos=qos_gpu-t3', '--hint=nomultithread',\n"
        "      '--distribution=block:block']\n"
        "    job-script-prologue: ['module purge', 'module load pytorch-gpu/py3/2.0', 'export OMP_NUM_THREADS=10']\n",
        {"--account": "abc@v100", "--gres": "gpu:4", "--qos": "qos_gpu-t3", "--time": "20:00:00", "--ntasks-per-node": "4",
         "--cpus-per-task": "10", "--mem": None, "--partition": None, "--hint": "nomultithread"},
    ),
    "JURECA-like": (
        "jobqueue:\n  slurm:\n    name: dask-worker\n    cores: 24\n    memory: 125GB\n    processes: 1\n"
        "    interface: ib0\n    death-timeout: 15\n    local-directory: /tmp\n    queue: batch\n    project: null\n"
        "    walltime: '00:15:00'\n    job-extra: []\n    log-directory: null\n    env-extra: []\n",
        {"--partition": "batch", "--account": None, "--time": "00:15:00", "--cpus-per-task": "24"},
    ),
    "a cloud that takes no --mem": (
        "jobqueue:\n  slurm:\n    name            : dask-worker\n    processes       : 8\n    cores           : 32\n"
        "    memory          : \"240GiB\"\n    shebang         : \"#!/bin/bash\"\n    walltime        : \"24:00:00\"\n"
        "    interface       : \"eth0\"\n    header_skip:\n      - \"--mem\"\n    job_script_prologue:\n"
        "      - \"source /contrib/me/conda.sh; conda activate ddc10\"\n",
        {"--mem": None, "--time": "24:00:00", "--ntasks-per-node": "8", "--cpus-per-task": "4"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("yaml", "expected"), SITES.values(), ids=SITES.keys())
def test_real_sites(site, yaml, expected):
    """Files as dask-jobqueue's documentation and its users have them go through as they are."""
    site(yaml)
    text = script(nodes=2)
    options = options_of(text)
    assert {name: options.get(name) for name in expected} == expected
    assert options["--nodes"] == "2"
    assert "--ntasks" not in options
    assert "dask" not in text
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- the walltime


def test_no_walltime_made_up(site):
    """dask-jobqueue's shipped 30 minutes are never used: without a word the partition's default holds, and is shown."""
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


@pytest.mark.parametrize(
    ("partition", "rows", "found"),
    [
        ("", SINFO, ("debug", "30:00")),
        ("long", "long|n/a|7-00:00:00\n", ("long", "7-00:00:00")),
        ("forever", "forever|NONE|infinite\n", ("forever", "infinite")),
        ("debug", "debug*|1:00|1:00:00\n", ("debug", "1:00")),
        ("", "a|1|2\nb*|3|4\n", ("b", "3")),
        ("nowhere", "", ("nowhere", "")),
        ("", "", ("", "")),
    ],
)
def test_default_time(said, partition, rows, found):
    """The default walltime is what sinfo says of the partition: its default, else its limit, else nothing."""
    said["sinfo"] = rows
    assert default_time(partition) == found


# ---- what SLURM says


@pytest.mark.parametrize(
    ("line", "phase", "reason", "rest"),
    [
        ("PENDING|Resources|2026-01-02T03:04:05|0:00|1:00:00||x", "pending", "Resources",
         {"expected_start": "2026-01-02 03:04:05", "elapsed_s": 0, "left_s": 3600, "nodes": ""}),
        ("PENDING|Priority|N/A|0:00|2-00:00:00||x", "pending", "Priority", {"expected_start": "", "left_s": 172800}),
        ("PENDING|None|N/A|0:00|10:00||x", "pending", "", {"left_s": 600}),
        ("CONFIGURING|None|2026-01-02T03:04:05|0:02|9:58|n[1-4]|x", "pending", "", {"nodes": ""}),
        ("RUNNING|None|2026-01-02T03:04:05|5:03|54:57|n[1-4]|x", "running", "",
         {"expected_start": "", "elapsed_s": 303, "left_s": 54 * 60 + 57, "nodes": "n[1-4]"}),
        ("RUNNING|None|x|1-02:03:04|UNLIMITED|n1|x", "running", "", {"elapsed_s": 93784, "left_s": None}),
        ("RUNNING|None|x|INVALID|INVALID|n1|x", "running", "", {"elapsed_s": 0, "left_s": None}),
        ("RUNNING|None|x|0:01|NOT_SET|n1|x", "running", "", {"left_s": None}),
        ("SIGNALING|None|x|0:01|1:00|n1|x", "running", "", {"nodes": "n1"}),
        ("COMPLETING|None|x|0:01|1:00|n1|x", "ended", "", {"nodes": ""}),
        ("CANCELLED|None|x|0:01|1:00|n1|x", "ended", "", {}),
        ("TIMEOUT|TimeLimit|x|0:01|0:00|n1|x", "ended", "", {}),
        ("FAILED|NonZeroExitCode|x|0:01|1:00|n1|x", "ended", "", {}),
        ("NODE_FAIL|None|x|0:01|1:00||x", "ended", "", {}),
        ("PREEMPTED|None|x|0:01|1:00||x", "ended", "", {}),
    ],
)  # fmt: skip
def test_squeue(line, phase, reason, rest):
    """squeue's line becomes a state: phase, reason, estimate, nodes and times."""
    state = _from_squeue(line)
    assert (state.phase, state.reason, state.word) == (phase, reason, line.partition("|")[0])
    assert {name: getattr(state, name) for name in rest} == rest


@pytest.mark.parametrize("reason", MEANINGS)
def test_every_reason_in_words(reason):
    """Each reason that is known is told in words; where waiting does not help, with what does."""
    state = _from_squeue(f"PENDING|{reason}|N/A|0:00|1:00||x")
    assert state.reason == reason
    assert state.meaning
    assert state.mend or not state.hopeless


@pytest.mark.parametrize(
    ("reason", "hopeless"),
    [
        ("AssocGrpBillingMinutes", True),
        ("PartitionTimeLimit", True),
        ("PartitionNodeLimit", True),
        ("BadConstraints", True),
        ("QOSMaxWallDurationPerJobLimit", True),
        ("Resources", False),
        ("Priority", False),
        ("QOSMaxJobsPerUserLimit", False),
        ("AssocGrpNodeLimit", False),
        ("Dependency", False),
        ("JobHeldUser", False),
        ("JobHeldAdmin", False),
        ("PartitionDown", False),
        ("PartitionInactive", False),
        ("NewWordOfTheNextVersion", False),
    ],
)
def test_hopeless(reason, hopeless):
    """Only a job that would wait for ever as it stands is hopeless; one that is held, or whose partition is down
    for now, keeps its place in the queue: only its owner or time can tell."""
    assert _from_squeue(f"PENDING|{reason}|N/A|0:00|1:00||x").hopeless is hopeless


@pytest.mark.parametrize("reason", ["ReqNodeNotAvail, UnavailableNodes:n[1-2]", "ReqNodeNotAvail, May be reserved for other job"])
def test_reason_with_details(reason):
    """A reason to which SLURM adds details is told in words as well."""
    state = _from_squeue(f"PENDING|{reason}|N/A|0:00|1:00||x")
    assert state.reason == reason
    assert "nodes it needs" in state.meaning
    assert not state.hopeless


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0:00", 0), ("5:03", 303), ("1:00:00", 3600), ("1-00:00:00", 86400), ("UNLIMITED", None), ("NOT_SET", None), ("", None)],
)
def test_seconds(text, expected):
    """squeue's times are read; words are no times."""
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("line", "phase", "rest"),
    [
        ("COMPLETED|0:0|61|n[1-4]", "ended", {"exit_status": 0, "elapsed_s": 61, "nodes": "n[1-4]", "word": "COMPLETED"}),
        ("TIMEOUT|0:0|3600|n1", "ended", {"meaning": "its walltime was reached"}),
        ("CANCELLED by 1001|0:0|0|None assigned", "ended", {"word": "CANCELLED", "meaning": "it was cancelled"}),
        ("FAILED|3:0|1|n1", "ended", {"exit_status": 3, "meaning": "it ended with exit status 3"}),
        ("FAILED|66:0|1|n1", "ended", {"exit_status": 66, "meaning": "the nodes do not see the session's directory"}),
        ("NODE_FAIL|0:0|1|n1", "ended", {"meaning": "a node failed"}),
        ("OUT_OF_MEMORY|0:125|1|n1", "ended", {"meaning": "it used more memory than it asked for"}),
        ("PREEMPTED|0:0||n1", "ended", {"elapsed_s": 0}),
        ("CANCELLED by 1001|0:0|5|n1\nCOMPLETED|0:0|61|n2", "ended", {"word": "COMPLETED", "nodes": "n2"}),
        ("RUNNING|0:0|5|n1", "unknown", {}),
        ("PENDING|0:0|0|None assigned", "unknown", {}),
        ("", "ended", {"word": "GONE"}),
    ],
)  # fmt: skip
def test_sacct(said, line, phase, rest):
    """Of a job that has left the queue accounting tells the end; where it knows nothing, the job is gone."""
    said["squeue"] = (1, "", "slurm_load_jobs error: Invalid job id specified")
    said["sacct"] = f"{line}\n" if line else ""
    state = SlurmLauncher().state("8123")
    assert state.phase == phase
    assert {name: getattr(state, name) for name in rest} == rest
    assert all("8123" in " ".join(command) for command, _ in said["asked"])


def test_no_accounting(said):
    """A site without accounting can still tell that a job is gone."""
    said["squeue"] = (1, "", "slurm_load_jobs error: Invalid job id specified")
    said["sacct"] = (1, "", "Slurm accounting storage is disabled")
    assert SlurmLauncher().state("8123").phase == "ended"


@pytest.mark.parametrize(
    ("said_of_it", "status", "meaning"),
    [
        ("JobId=8123 ExitCode=66:0 Reason=x", 66, "the nodes do not see the session's directory"),
        ("JobId=8123 DerivedExitCode=9:0 ExitCode=1:0", 1, "it ended with exit status 1"),
        ("", None, ""),
    ],
)
def test_end_that_the_queue_remembers(said, said_of_it, status, meaning):
    """How a job ended that is still in the controller's memory is known at once, before accounting has it."""
    said["squeue"] = "FAILED|NonZeroExitCode|x|0:01|1:00|n1|x\n"
    said["scontrol"] = said_of_it
    state = SlurmLauncher().state("8123")
    assert (state.phase, state.exit_status) == ("ended", status)
    assert state.meaning == meaning


@pytest.mark.parametrize(
    "answer",
    [
        (1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"),
        (1, "", "slurm_load_jobs error: Socket timed out on send/recv operation"),
        LaunchError("SLURM's squeue did not answer within 30 s.", "Try again in a minute."),
    ],
    ids=["no controller", "socket", "no answer"],
)
def test_queue_does_not_answer(said, answer):
    """When the queue does not answer, the job's state is unknown: nobody takes it for ended, nobody stops waiting."""
    said["squeue"] = answer
    assert SlurmLauncher().state("8123").phase == "unknown"


# ---- submitting and cancelling


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


def test_submit_refused(site, said, spec):
    """A refusal is told in SLURM's words."""
    said["sbatch"] = (1, "", "sbatch: error: Batch job submission failed: Invalid partition name specified\n")
    with pytest.raises(LaunchError, match="Invalid partition name specified"):
        SlurmLauncher().submit(spec)


POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
REFUSED = [
    ("sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job submission failed: "
     "Invalid partition name specified", "--partition"),
    ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified", "--account"),
    ("sbatch: error: Batch job submission failed: Invalid qos specification", "--qos"),
    ("sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)", "--time"),
    ("sbatch: error: Batch job submission failed: Requested node configuration is not available", "--nodes"),
    ("sbatch: error: Batch job submission failed: Node count specification invalid", "--nodes"),
    ("sbatch: error: Batch job submission failed: More processors requested than permitted", "--cpus-per-task"),
    ("sbatch: error: Memory specification can not be satisfied\nsbatch: error: Batch job submission failed: "
     "Requested node configuration is not available", "--mem"),
    ("sbatch: error: Batch job submission failed: Invalid feature specification", "--constraint"),
    ("sbatch: error: Batch job submission failed: Invalid generic resource (gres) specification", "--gpus-per-node"),
    (f"sbatch: error: Batch job submission failed: {POLICY}", "sacctmgr show associations"),
    (f"sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: Batch job submission failed: {POLICY}", "--time"),
    (f"sbatch: error: AssocGrpBillingMinutes\nsbatch: error: Batch job submission failed: {POLICY}", "--time"),
    (f"sbatch: error: QOSMaxNodePerJobLimit\nsbatch: error: Batch job submission failed: {POLICY}", "--nodes"),
    ("sbatch: error: Batch job submission failed: User's group not permitted to use this partition", "--partition"),
    ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", "again"),
    ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", "again"),
    ("sbatch: error: cli_filter plugin terminated with error", "--dry-run"),
    ("", "--dry-run"),
]  # fmt: skip


@pytest.mark.parametrize(("stderr", "mend"), REFUSED, ids=[s[-60:] or "no words" for s, _ in REFUSED])
def test_refusals(stderr, mend):
    """Whatever sbatch says is passed on in its words, in two lines, with what mends it."""
    error = refusal(slurm._words(f"{stderr}\n"), Resources())
    lines = str(error).splitlines()
    assert len(lines) == 2, lines
    assert mend in error.mend
    words = stderr.rpartition("submission failed: ")[2].removeprefix("sbatch: error: ")
    assert words in error.message
    assert "Batch job submission failed" not in error.message
    assert "sbatch: error" not in error.message


def test_refusal_says_what_was_asked():
    """A refusal repeats what was asked for, and not what was left to the site."""
    resources = resolve({"nodes": 4, "partition": "nope", "time": "5"}, {})
    message = refusal("Invalid partition name specified", resources).message
    assert "--nodes 4" in message
    assert "--partition nope" in message
    assert "--account" not in message


def test_cancel(said):
    """Cancelling says nothing where it succeeds, or where there is nothing to cancel."""
    for answer in ("", (1, "", "scancel: error: Kill job error on job id 8123: Invalid job id specified")):
        said["scancel"] = answer
        SlurmLauncher().cancel("8123")
    assert said["asked"][-1][0] == ["scancel", "8123"]


def test_cancel_fails(said):
    """A job that could not be cancelled goes on costing: that is an error, and shows how to do it by hand."""
    said["scancel"] = (1, "", "scancel: error: Kill job error on job id 8123: Access/permission denied")
    with pytest.raises(LaunchError, match="permission denied") as error:
        SlurmLauncher().cancel("8123")
    assert "scancel 8123" in error.value.mend


# ---- is there a SLURM?


NO_CLUSTER = (
    "sinfo: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\n"
    "sinfo: error: fetch_config: DNS SRV lookup failed\n"
    "sinfo: error: _establish_config_source: failed to fetch config\n"
    "sinfo: fatal: Could not establish a configuration source\n"
)


def not_here():
    """What the runner raises where a command is not installed."""
    error = LaunchError("SLURM's sinfo is not on this machine.", "")
    error.__cause__ = FileNotFoundError()
    return error


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("debug*\n", True), ("", True), ((1, "", NO_CLUSTER), False), (not_here(), False)],
    ids=["partitions", "no partition", "no cluster", "no commands"],
)
def test_answers(said, answer, expected):
    """SLURM is here where sinfo answers; commands without a cluster are none."""
    said["sinfo"] = answer
    assert answers() is expected


@pytest.mark.parametrize(
    "answer",
    [
        (1, "", "slurm_load_partitions: Unable to contact slurm controller (connect failure)\n"),
        LaunchError("SLURM's sinfo did not answer within 30 s.", "Try again in a minute."),
    ],
    ids=["no controller", "no answer"],
)
def test_away_for_now(said, answer):
    """A SLURM that is away for now is an error: nobody is silently given a session on the login node instead."""
    said["sinfo"] = answer
    with pytest.raises(LaunchError) as error:
        answers()
    assert len(str(error.value).splitlines()) == 2


# ---- the one runner


@pytest.fixture
def executed(monkeypatch):
    """What the runner would have executed."""
    calls = []

    def run(command, **kwargs):
        calls.append((command, kwargs))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(slurm.subprocess, "run", run)
    return calls


def test_runner_environment(executed, monkeypatch):
    """A notebook that itself runs in a job, or whose user set sbatch's variables, asks SLURM as if it did not."""
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SBATCH_EXPORT", "SQUEUE_FORMAT", "SACCT_FORMAT", "SINFO_FORMAT"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/other.conf")
    slurm.run(["sinfo"])
    environment = executed[0][1]["env"]
    assert [name for name in environment if name.startswith(("SLURM", "SBATCH", "SQUEUE", "SACCT", "SINFO"))] == ["SLURM_CONF"]
    assert "PATH" in environment


def test_runner_is_careful(executed):
    """No command waits for ever, reads the notebook's input, or is hit by its Ctrl-C."""
    slurm.run(["squeue"])
    kwargs = executed[0][1]
    assert kwargs["timeout"] == slurm.COMMAND_TIMEOUT_S
    assert kwargs["stdin"] == subprocess.DEVNULL
    assert kwargs["start_new_session"]
    assert not kwargs.get("shell")


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (FileNotFoundError(), "not on this machine"),
        (subprocess.TimeoutExpired("sbatch", 30), "did not answer"),
        (PermissionError(13, "Permission denied"), "sbatch"),
    ],
)
def test_runner_translates(monkeypatch, raised, words):
    """A command that cannot be run is told in two lines."""

    def run(*_args, **_kwargs):
        raise raised

    monkeypatch.setattr(slurm.subprocess, "run", run)
    with pytest.raises(LaunchError, match=words) as error:
        slurm.run(["sbatch"])
    assert len(str(error.value).splitlines()) == 2
    assert error.value.__cause__ is raised
