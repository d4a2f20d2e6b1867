"""Sessions in a real SLURM: one job, one MPI world, every wait and every refusal in words."""

import json
import shutil
from pathlib import Path
from textwrap import dedent, indent

import pytest

START = "import hpcmagic\ns = hpcmagic.start(session='t', launcher='slurm', nodes=4, time='10')\n"


@pytest.fixture
def alice(cluster):
    """Run Python as alice on the hub; give what it printed. Her sessions start from nothing."""
    for folder in (".local/state/hpcmagic", ".config/hpcmagic", ".config/dask"):
        shutil.rmtree(Path("/home/alice", folder), ignore_errors=True)

    def run(code, *, user="alice", timeout=90, **variables):
        told = [f"{name}={value}" for name, value in variables.items()]
        done = cluster.as_user(user, *told, cluster.python, "-", input=dedent(code), timeout=timeout)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def refused(alice, call, **kwargs):
    """The two lines of the HpcMagicError that a call raises."""
    code = f"import hpcmagic\ntry:\n{indent(dedent(call), '    ')}\nexcept hpcmagic.HpcMagicError as e:\n    print('@', e)\n"
    lines = alice(code, **kwargs).partition("@ ")[2].strip().splitlines()
    assert len(lines) == 2, lines
    assert lines[1].startswith("→ ")
    return "\n".join(lines)


def test_one_job_one_world(cluster, alice):
    """Four nodes are one SLURM job and one MPI world; on the hub nothing of ours runs beside the kernel."""
    code = START + dedent("""
        import json, os, psutil, subprocess
        hub = os.readlink("/proc/self/ns/net")
        mine = [p for p in psutil.process_iter() if p.uids().real == os.getuid() and p.status() != "zombie"]
        on_hub = [" ".join(p.cmdline()) for p in mine if os.readlink(f"/proc/{p.pid}/ns/net") == hub and p.pid != os.getpid()]
        jobs = subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True).stdout.split()
        out = dict(on_hub=on_hub, jobs=jobs, job=s.status().job_id,
                   hosts=list(s.run("import socket; socket.gethostname()")),
                   total=s.run("comm.allreduce(rank)").same(), sizes=s.run("comm.size, size").same(),
                   users=s.run("import getpass; getpass.getuser()").same())
        s.stop()
        print("@" + json.dumps(out))
    """)
    out = json.loads(alice(code).partition("@")[2])
    assert out["hosts"] == list(cluster.nodes)
    assert (out["total"], out["sizes"], out["users"]) == (6, [4, 4], "alice")
    assert out["jobs"] == [out["job"]]
    assert out["on_hub"] == []


def test_waits_in_the_queue(cluster, alice):
    """While the job waits its reason stands there in words; Ctrl-C leaves it; the next start picks it up."""
    blocker = cluster.as_user(
        "bob", "sbatch", "--parsable", "-N4", "--exclusive", "-t5", "--wrap", "sleep 200"
    ).stdout.strip()
    code = """
        import hpcmagic, os, signal, threading
        threading.Timer(4, os.kill, (os.getpid(), signal.SIGINT)).start()
        from hpcmagic.notebook import waiting
        seen = []
        waiting.StatusLine.update = lambda self, text: seen.append(text)
        try:
            hpcmagic.start(session="t", launcher="slurm", nodes=4, time="10")
        except hpcmagic.LaunchError as e:
            print("@", seen[-1], "@", e)
    """
    _, waiting, stopped = alice(code).split("@")
    assert "waits in the queue: " in waiting
    assert any(f"{word} – " in waiting for word in ("Resources", "Priority")), waiting
    assert "stays in the queue" in stopped
    assert "%hpc stop" in stopped
    (job,) = [job for job, who, _ in cluster.jobs() if who.startswith("alice")]
    cluster.hub("scancel", blocker)
    out = alice(START + "print('@', s.status().job_id, s.run('rank').ranks)\ns.stop()")
    assert out.partition("@")[2].split(maxsplit=1) == [job, "(0, 1, 2, 3)\n"]


def test_can_never_start(cluster, alice):
    """A job over the account's billing-minutes is an error with the mend, and is taken out of the queue."""
    cluster.hub("sacctmgr", "-i", "modify", "account", "alice-lab", "set", "GrpTRESMins=billing=20")
    try:
        said = refused(alice, "hpcmagic.start(session='t', launcher='slurm', nodes=4, time='50')")
        assert "AssocGrpBillingMinutes" in said
        assert "--time" in said
        assert cluster.jobs() == []
    finally:
        cluster.hub("sacctmgr", "-i", "modify", "account", "alice-lab", "set", "GrpTRESMins=billing=-1")


@pytest.mark.parametrize(
    ("options", "words", "mend", "user"),
    [
        ("partition='nope'", "invalid partition", "sinfo", "alice"),
        ("account='bob-lab'", "Invalid account", "--account", "alice"),
        ("qos='nope'", "Invalid qos", "--qos", "alice"),
        ("cpus_per_task=400", "PartitionConfig", "--cpus-per-task", "alice"),
        ("time='5'", "Invalid account", "--account", "carol"),
    ],
)
def test_refused(alice, options, words, mend, user):
    """What sbatch refuses arrives in SLURM's words with the mend, and leaves nothing behind."""
    said = refused(alice, f"hpcmagic.start(session='t', launcher='slurm', {options})", user=user)
    assert words.lower() in said.lower()
    assert mend in said
    listed = alice("import hpcmagic; print(hpcmagic.sessions())", user=user)
    assert listed.strip() == "[]"


def test_time_limit(cluster, alice):
    """A walltime over the partition's limit is refused by sbatch, or found while the job waits."""
    call = "hpcmagic.start(session='t', launcher='slurm', partition='short', time='30')"
    assert "PartitionTimeLimit" in refused(alice, call)
    with cluster.configured(EnforcePartLimits="ALL"):
        assert "time limit" in refused(alice, call).lower()


def test_directory_that_nodes_do_not_see(cluster, alice):
    """A session_dir on the hub's own disk is named as the cause, with the mend."""
    said = refused(alice, "hpcmagic.start(session='t', launcher='slurm', time='5', session_dir='/tmp/mine')")
    cluster.hub("rm", "-r", "/tmp/mine")  # its log is kept there
    assert "do not see /tmp/mine/t" in said
    assert "session_dir" in said


def test_nobody_comes(cluster, alice):
    """A session that nobody comes for ends by itself, says why, and buys nothing more."""
    alice("""
        import hpcmagic, os
        s = hpcmagic.start(session="t", launcher="slurm", nodes=2, time="10", no_client_limit="0:04")
        print(s.run("rank"))
        os._exit(0)
    """)
    cluster_wait(lambda: not cluster.jobs())
    said = refused(alice, "hpcmagic.start(session='t', launcher='slurm', unasked=False)")
    assert "no_client_limit" in said
    assert "%%remote --nodes 2 --time 10" in said


def cluster_wait(condition, seconds=30):
    """Wait until something is so; fail when it does not come."""
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)


def test_cancelled_from_outside(alice):
    """scancel while a cell runs ends the cell with the cause, within seconds, and nothing is bought again."""
    said = refused(alice, """
        s = hpcmagic.start(session='t', launcher='slurm', nodes=2, time='10')
        import subprocess, threading
        threading.Timer(2, subprocess.run, (["scancel", s.job.job_id],)).start()
        s.run("import time; time.sleep(60)")
    """)  # fmt: skip
    assert "has ended" in said
    assert "variables are gone" in said


def test_environment(alice):
    """A job sees the variables that it should, and neither the hub's tokens nor what merely looks harmless."""
    out = alice(
        START + "print('@', s.run('import os, json; json.dumps(dict(os.environ))')[0])\ns.stop()",
        JUPYTERHUB_API_TOKEN="a-token", JPY_SESSION_NAME="/home/alice/secret-plan.ipynb", HARMLESS="1", OMP_NUM_THREADS="2",
    )  # fmt: skip
    environment = json.loads(out.partition("@ ")[2])
    assert environment["OMP_NUM_THREADS"] == "2"
    assert not {"JUPYTERHUB_API_TOKEN", "JPY_SESSION_NAME", "HARMLESS"} & set(environment)
    assert not any("a-token" in value or "secret-plan" in value for value in environment.values())


def test_inside_a_job(cluster, alice):
    """A notebook that itself runs inside a job starts sessions like any other."""
    code = START + "print('@', s.run('rank').ranks)\ns.stop()"
    home = Path("/home/alice/inside.py")
    home.write_text(code)
    done = cluster.as_user("alice", "srun", "-N1", "-c1", "--mem=500", "-t5", cluster.python, str(home), timeout=90)
    home.unlink()
    assert done.stdout.partition("@ ")[2].strip() == "(0, 1, 2, 3)", done.stdout + done.stderr


def test_site_configuration(cluster, alice):
    """A site's jobqueue.yaml serves as it is: queue, account, prologue, directives; no walltime is invented."""
    folder = Path("/home/alice/.config/dask")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobqueue.yaml").write_text(dedent("""
        jobqueue:
          slurm:
            cores: 2
            processes: 1
            memory: 1GB
            queue: short
            account: alice-lab
            walltime: '00:02:00'
            job-script-prologue: ['export SITE_SAYS=hello']
            job-extra-directives: ['--comment=from-the-site', '-n 1']
    """))  # fmt: skip
    code = """
        import hpcmagic, subprocess
        s = hpcmagic.start(session="t", launcher="slurm", nodes=2)
        shown = subprocess.run(["squeue", "-h", "-o", "%P|%a|%l|%k|%D|%C"], capture_output=True, text=True).stdout
        print("@", shown.strip(), "@", s.run("import os; os.environ['SITE_SAYS']").same(), s.size)
        s.stop()
    """
    _, shown, said = alice(code).split("@")
    assert shown.strip() == "short|alice-lab|2:00|from-the-site|2|4"
    assert said.split() == ["hello", "2"]


@pytest.mark.parametrize(("mpi", "world"), [("pmix", "4"), ("mpiexec", "4"), ("none", "None")])
def test_ways_to_start(alice, mpi, world):
    """Each way to start the ranks gives the world it promises."""
    code = START + "print('@', s.run('comm and comm.size').same() if s.run('comm and comm.size') else None)\ns.stop()"
    assert alice(code, HPCMAGIC_MPI=mpi).partition("@ ")[2].strip() == world


def test_wrong_world(alice):
    """A way that gives four worlds of one is found out, and is no session."""
    said = refused(alice, START.partition("\n")[2], HPCMAGIC_MPI="pmi2")
    assert "MPI" in said
    assert "did not start" in said


def test_wider_modes(alice):
    """A session's directory that others may read is refused before anything is sent."""
    code = START + "import os; os.chmod(s.directory.path, 0o755); s.control.close()"
    alice(code)
    assert "mode 0755" in refused(alice, "hpcmagic.start(session='t', launcher='slurm')")
    alice(
        "import hpcmagic, os; p=os.path.expanduser('~/.local/state/hpcmagic/t'); os.chmod(p, 0o700)\n"
        + START
        + "s.stop()"
    )


def test_full_disk(cluster, alice):
    """A session_dir that is full is said to be that, with the mend, before anything is bought."""
    mounted = cluster.hub(
        "sh", "-c", "mkdir -p /tmp/full && mount -t tmpfs -o size=64k,mode=700,uid=$(id -u alice) tmpfs /tmp/full"
    )
    assert mounted.returncode == 0, mounted.stderr
    try:
        said = refused(alice, """
            with open("/tmp/full/filler", "wb") as file:
                try:
                    file.write(b"x" * 100_000)
                except OSError:
                    pass
            hpcmagic.start(session='t', launcher='slurm', time='5', session_dir='/tmp/full/s')
        """)  # fmt: skip
        assert "No space left on device" in said
        assert "session_dir" in said
        assert cluster.jobs() == []
    finally:
        cluster.hub("umount", "/tmp/full")
