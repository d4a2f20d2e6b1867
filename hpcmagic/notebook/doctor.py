"""`%hpc doctor`: does everything hold that a session needs? One line a check, with the mend.

examine() ─┬─ this machine: profiles, SLURM, accounting, the place for sessions, descriptors, MPI
           └─ a session: its ranks answer ─► directory, ports, MPI's world, versions, modes, encryption, disk, clocks
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from hpcmagic.errors import HpcMagicError
from hpcmagic.launch import slurm
from hpcmagic.notebook import output, quota
from hpcmagic.notebook.perrank import rank_set
from hpcmagic.notebook.progress import nbytes_in_words
from hpcmagic.notebook.session import Session
from hpcmagic.profiles import SITE_FILE, resolve, user_file
from hpcmagic.rendezvous import SessionDirectory, require_private
from hpcmagic.wire.descriptors import require_descriptors
from hpcmagic.wire.health import FRESH_S, Health, free_nbytes, leave_token, versions

State = Literal["good", "bad", "open"]
SIGNS = {"good": "✓", "bad": "✗", "open": "–"}
ANSWER_S = 5.0 + FRESH_S  # C code that holds a rank's interpreter lets it answer late, or not at all
SKEW_S = 2.0  # what two hosts' clocks may differ by
LOW_NBYTES = 256 << 20  # of free disk: results and logs go there
DECISIVE = {
    "Python": 2,
    "hpcmagic": 3,
    "ipyparallel": 2,
    "cloudpickle": 1,
    "numpy": 1,
    "pandas": 1,
}
MORE_ROOM = "Free some space or quota there, or name another `session_dir` in your profile."
TO_PROVE = (
    "`%hpc doctor` once a session runs; or `%hpc doctor --nodes 1 --time 5` buys one for the look, and ends it."
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; ``open``: it could not be, and `mend` says how it can."""

    name: str
    state: State
    said: str
    mend: str = ""


class Report(tuple[Check, ...]):
    """All checks, in order; shown one a line."""

    __slots__ = ()

    @property
    def bad(self) -> Report:
        """What needs a mend."""
        return Report(check for check in self if check.state == "bad")

    def __repr__(self) -> str:
        wide = max((len(check.name) for check in self), default=0)
        lines = []
        for check in self:
            lines.append(f"{SIGNS[check.state]} {check.name:{wide}}  {check.said}")
            if check.mend:
                lines.append(f"  {'':{wide}}  → {check.mend}")
        ill, unknown = len(self.bad), sum(check.state == "open" for check in self)
        found = f"{output.count(ill, 'thing')} to mend" if ill else "Nothing to mend"
        return "\n".join([*lines, "", f"{found}{f'; {unknown} could not be looked at' if unknown else ''}."])


def examine(session: Session | None = None) -> Report:
    """Look at this machine, and through a session at its nodes.

    Parameters
    ----------
    session
        One that is alive; None = what only a job can prove stays open.
    """
    line, found = output.StatusLine(), []
    try:
        for what, check in HERE.items():
            line.update(f"looking at {what} …")
            found.append(_checked(what, check))
        if session is None:
            said = f"not looked at: {', '.join(THERE)}"
            return Report([*found, Check("the nodes", "open", said, TO_PROVE)])
        line.update("asking the ranks …")
        try:
            seen = Seen(session)
        except HpcMagicError as error:
            return Report([*found, Check("the ranks", "bad", error.message, error.mend)])
        found.append(seen.answered())
        for what, look in THERE.items():
            line.update(f"looking at {what} …")
            found.append(_checked(what, partial(look, seen)))
    finally:
        line.clear()
    return Report(found)


def _checked(what: str, check: Callable[[], Check]) -> Check:
    """Do a check; an error of ours is what it found."""
    try:
        return check()
    except HpcMagicError as error:
        return Check(what, "bad", error.message, error.mend)


# ── this machine ─────────────────────────────────────────────────────────────────────────────


def profiles() -> Check:
    """Whether the files of profiles can be read, and which profile is the default."""
    resources = resolve({})
    files = [str(path) for path in (SITE_FILE, user_file()) if path.exists()]
    default = f"default {resources.profile}" if resources.profile else "no default"
    return Check("profiles", "good", f"{default}; {' and '.join(files) or 'no file: only those built in'}")


def batch_system() -> Check:
    """Whether SLURM answers here."""
    if not slurm.answers():
        return Check("SLURM", "open", "no SLURM on this machine: sessions run here, as processes")
    said = slurm.run(["sinfo", "--version"]).stdout.strip()
    pinged = slurm.run(["scontrol", "ping"], timeout_s=slurm.QUERY_TIMEOUT_S).stdout.strip().splitlines()
    return Check("SLURM", "good", f"{said}; {'; '.join(line.strip() for line in pinged) or 'it answers'}")


def accounting() -> Check:
    """Whether sacct answers: how jobs ended, and what they cost, stands there."""
    if not slurm.answers():
        return Check("accounting", "open", "no SLURM on this machine")
    done = slurm.run(["sacct", "--allocations", "--noheader", "--starttime=now-1minutes"], timeout_s=15.0)
    if done.returncode == 0:
        return Check("accounting", "good", "sacct answers")
    said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
    return Check(
        "accounting", "open", f"sacct does not answer: {said}", "Without it less is told of how a job ended."
    )


def place() -> Check:
    """Whether the place for sessions can be written, by nobody else, and has room, on the disk and in the quota."""
    root = resolve({}).directory
    there = next(path for path in (root, *root.parents) if path.exists())
    left = quota.left_nbytes(there)
    if 0 <= left < LOW_NBYTES:
        return Check("session_dir", "bad", f"{root}: only {nbytes_in_words(left)} left of your quota", MORE_ROOM)
    if not root.exists():
        return Check("session_dir", "good", f"{root} is made with the first session")
    require_private(root)
    directory = SessionDirectory(root)
    token, _ = leave_token(directory)
    token.unlink()
    of_quota = f", {nbytes_in_words(left)} left of your quota" if left >= 0 else ""
    return _room("session_dir", {str(root): free_nbytes(root)}, f"private, can be written{of_quota}")


def descriptors() -> Check:
    """Whether this process may open what a session needs."""
    require_descriptors()
    return Check("open files", "good", "enough for a session")


def mpi() -> Check:
    """Whether ranks on this machine would be one MPI world."""
    has = {"mpiexec": shutil.which("mpiexec"), "mpi4py": importlib.util.find_spec("mpi4py")}
    if all(has.values()):
        return Check("MPI", "good", f"mpi4py, and {has['mpiexec']}")
    lacking = " and ".join(name for name, there in has.items() if not there)
    return Check("MPI", "open", f"no {lacking} here: `comm` is None on local ranks", "pip install 'hpcmagic[mpi]'")


HERE: dict[str, Callable[[], Check]] = {
    "profiles": profiles, "SLURM": batch_system, "accounting": accounting, "session_dir": place,
    "open files": descriptors, "MPI": mpi,
}  # fmt: skip


# ── a session ────────────────────────────────────────────────────────────────────────────────


class Seen:
    """What the ranks of a session say of themselves.

    Raises
    ------
    HpcMagicError
        The session is over, or its directory cannot be written.
    """

    def __init__(self, session: Session) -> None:
        session.require_alive()
        self.session = session
        self.took_s = 0.0
        self.between: dict[int, tuple[float, float]] = {}  # by rank: this clock when it was asked, and had answered
        token, self.text = leave_token(session.directory)
        try:
            self.ranks = self._asked(token.name)
        finally:
            token.unlink(missing_ok=True)

    def _asked(self, token: str) -> Mapping[int, Health]:
        """Ask all ranks; give the answers of those that do in time."""
        everyone = range(self.session.size)
        began, began_s = time.time(), time.monotonic()
        answers = self.session.control_path().health(everyone, token=token)
        while len(answers) < len(everyone) and time.monotonic() < began_s + ANSWER_S:
            for rank in answers.keys() - self.between.keys():
                self.between[rank] = began, time.time()
            time.sleep(0.002)
            self.session.look(time.monotonic())
        self.took_s = time.monotonic() - began_s
        now = time.time()
        self.between.update(dict.fromkeys(answers.keys() - self.between.keys(), (began, now)))
        return {rank: Health(**answers[rank]) for rank in sorted(answers)}

    def hosts(self) -> str:
        """Name the hosts that ranks run on."""
        names = list(dict.fromkeys(one.host for one in self.ranks.values()))
        return ", ".join(names[:4]) + (f" … ({len(names)})" if len(names) > 4 else "")

    def answered(self) -> Check:
        """Whether all ranks have."""
        silent = [rank for rank in range(self.session.size) if rank not in self.ranks]
        if silent:
            said = f"{output.ranks_in_words(silent)} did not answer within {ANSWER_S:g} s"
            return Check(
                "the ranks", "bad", said, "C code may hold the interpreter there; `%hpc restart` gives new ones."
            )
        ranks, took = output.count(len(self.ranks), "rank"), f"{1e3 * self.took_s:.0f} ms"
        return Check(
            "the ranks", "good", f"{ranks} of session {self.session.name} on {self.hosts()} answered in {took}"
        )


def directory_seen(seen: Seen) -> Check:
    """Whether each node sees the session's directory: it has read there what was written here."""
    path = seen.session.directory.path
    blind = {rank: one for rank, one in seen.ranks.items() if one.read != seen.text}
    if not blind:
        return Check("shared directory", "good", f"{path}: each rank has read there what was written here")
    one = next(iter(blind.values()))
    said = f"ranks {rank_set(blind)} do not see {path} ({one.host}: {one.why or 'it reads something else there'})"
    return Check("shared directory", "bad", said, "Name a `session_dir` on a file system that the nodes see.")


def ports(seen: Seen) -> Check:
    """Whether this host reaches a port on each rank's node, and each rank proves that it holds the session's key."""
    channels, began_s = seen.session.data.channels, time.monotonic()
    before = channels.open_to()
    channels.to(list(seen.ranks), 0)
    took_s = time.monotonic() - began_s
    channels.close([rank for rank in channels.open_to() if rank not in before])
    ranks = output.count(len(seen.ranks), "rank")
    return Check("ports of the nodes", "good", f"connected to {ranks} in {1e3 * took_s:.0f} ms")


def world(seen: Seen) -> Check:
    """Whether MPI's world is as large as the session."""
    keeper, size = seen.session.keeper_state(), seen.session.size
    if keeper.world == size:
        return Check("MPI's world", "good", f"{output.count(size, 'rank')}, started by {keeper.starter}")
    why = keeper.note or f"it was started by {keeper.starter or 'nothing that has MPI'}"
    return Check("MPI's world", "open", f"none, `comm` is None: {why}", "See `mpi` in docs/profiles.md.")


def same_versions(seen: Seen) -> Check:
    """Whether both sides have the same versions of what passes pickles and messages between them."""
    here = versions()
    other: dict[tuple[str, str], list[int]] = {}
    for rank, one in seen.ranks.items():
        for name, version in one.versions.items():
            if name in here and here[name] != version:
                other.setdefault((name, version), []).append(rank)
    if not other:
        return Check(
            "versions", "good", f"equal on both sides: Python {here['Python']}, hpcmagic {here['hpcmagic']} …"
        )
    said = "; ".join(
        f"{name} {version} on ranks {rank_set(ranks)}, {here[name]} here" for (name, version), ranks in other.items()
    )
    weighs = any(_leading(version, name) != _leading(here[name], name) for name, version in other)
    mend = "Have the ranks use this environment: `python` in the profile, or install the same versions there."
    return Check("versions", "bad" if weighs else "open", said, mend)


def _leading(version: str, name: str) -> list[str]:
    """Give the parts of a version that must agree: pickles and messages pass between both sides."""
    return version.split(".")[: DECISIVE.get(name, 0)]


def private(seen: Seen) -> Check:
    """Whether nobody else may read the session's files."""
    directory = seen.session.directory
    SessionDirectory.open(directory.path)
    for path in directory.path.rglob("*"):
        if path.exists():
            require_private(path)
    return Check("private files", "good", "every folder 0700, every file 0600, yours")


def encrypted(seen: Seen) -> Check:
    """Whether the sockets to the keeper are encrypted; arrays always are."""
    seen.session.control_path().require_encrypted()
    said = "cells and results by CURVE, arrays by AES-256-GCM; what ranks tell each other over MPI is not"
    return Check("encryption", "good", said)


def disk(seen: Seen) -> Check:
    """Whether there is room where results and logs are written."""
    return _room("disk", {one.host: one.free_nbytes for one in seen.ranks.values()}, "")


def _room(name: str, free: Mapping[str, int], also: str) -> Check:
    known = {where: nbytes for where, nbytes in free.items() if nbytes >= 0}
    if not known:
        return Check(name, "open", "how much room there is cannot be told")
    where, least = min(known.items(), key=lambda one: one[1])
    room = f"{nbytes_in_words(least)} free"
    said = f"{where}: {also}, {room}" if also else f"{room}, as {where} sees it"
    if least < LOW_NBYTES:
        return Check(name, "bad", said, MORE_ROOM)
    return Check(name, "good", said)


def clocks(seen: Seen) -> Check:
    """Whether the nodes' clocks go with this one: times in logs are compared by people, lifetimes never are."""
    off: dict[str, float] = {}
    for rank, one in seen.ranks.items():
        early, late = seen.between[rank]
        ahead = one.time_s - late if one.time_s > late else min(0.0, one.time_s - early)
        off[one.host] = max(off.get(one.host, 0.0), ahead, key=abs)
    host, most = max(off.items(), key=lambda one: abs(one[1]), default=("", 0.0))
    if abs(most) > SKEW_S:
        said = f"{host}'s is {abs(most):.0f} s {'ahead' if most > 0 else 'behind'}"
        return Check("clocks", "bad", said, "Tell your administrator: NTP does not hold them together.")
    return Check("clocks", "good", f"within {SKEW_S:g} s of this host's")


THERE: dict[str, Callable[[Seen], Check]] = {
    "shared directory": directory_seen, "ports of the nodes": ports, "MPI's world": world, "versions": same_versions,
    "private files": private, "encryption": encrypted, "disk": disk, "clocks": clocks,
}  # fmt: skip
