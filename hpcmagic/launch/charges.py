"""What SLURM tells of prices: a partition's weights, a QOS's factor, what an account has left, and a job's charge.

    scontrol show partition, config · sacctmgr show qos, user ─► Quote, before and while a job runs
    scontrol show job                                         ─► what it has got
    scontrol show assoc_mgr, else sshare                      ─► Balance
    sacct                                                     ─► Accounted

Each answer is kept for some minutes; balances are asked for by one of the user's kernels for all. Whoever asks below
a cell waits two seconds at most: an answer that comes later serves the next one. What SLURM does not tell, or not
to this user, is left out.
"""

from __future__ import annotations

import math
import os
import pwd
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from hpcmagic.cost import Quote, Tariff, rule_of, tres_of, unit_of, weights_of, with_typed_gpus
from hpcmagic.errors import HpcMagicError
from hpcmagic.launch import slurm
from hpcmagic.launch.board import Board
from hpcmagic.launch.expected import asked_tres, by_core
from hpcmagic.launch.jobqueue import site_extras
from hpcmagic.profiles import Resources, walltime_s

T = TypeVar("T")
Ask = Callable[[Sequence[str]], list[str] | None]

KEPT_S = 600.0  # prices and factors
BALANCE_KEPT_S = 30.0  # for who is about to buy, or asks for it
BALANCE_SHOWN_S = 120.0  # for a meter
ACCOUNTED_KEPT_S = 5.0  # what accounting says, but of jobs that have ended, which stays
ASK_AGAIN_S = 30.0  # where SLURM did not answer
WAIT_S = 2.0
SACCT = "JobIDRaw,State,ElapsedRaw,AllocTRES,Partition,QOS,Account,Start"
ALIVE = ("PENDING", "RUNNING", "REQUEUED", "SUSPENDED", "CONFIGURING", "COMPLETING", "RESIZING")
MOST_PARENTS = 8  # of an account

NO_FACTOR = "the QOS's factor, which SLURM does not tell"


@dataclass(frozen=True, slots=True)
class Accounted:
    """What accounting says of one job."""

    job_id: str
    state: str
    elapsed_s: float
    tres: dict[str, float]
    partition: str
    qos: str
    account: str
    start: str  # local time, as sacct prints it

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.state.split()[0] not in ALIVE


@dataclass(frozen=True, slots=True)
class Balance:
    """What an account or a QOS has left of a limit on minutes.

    Attributes
    ----------
    whose
        ``account alice-lab``, ``QOS long``.
    what
        The TRES that is limited: ``billing``, ``cpu``, ``gres/gpu`` …
    limit, used, promised
        In minutes of that TRES; promised is what jobs that run may still use.
    """

    whose: str
    what: str
    limit: float
    used: float
    promised: float = 0.0

    @property
    def left(self) -> float:
        """Minutes that are left."""
        return max(0.0, self.limit - self.used)


class Books:
    """A site's answers, each kept for a while.

    Parameters
    ----------
    ask
        Runs a command and gives its lines; None where it fails.
    wait_s
        How long whoever asks waits, unless it is about to buy.
    board
        Where other kernels of this user look, and this one; None = it is alone.
    """

    def __init__(
        self,
        ask: Ask | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait_s: float = WAIT_S,
        board: Board | None = None,
    ) -> None:
        self._run = ask or _lines
        self._clock = clock
        self._wait_s = wait_s
        self._board = board
        self._answers: dict[str, Any] = {}
        self._asked: dict[str, tuple[float, bool]] = {}  # when, and whether there was an answer
        self._asking: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()

    def quote(self, resources: Resources) -> Quote | None:
        """Say what a job of these resources would be charged; None where SLURM does not tell. Waits for answers."""
        unit = unit_of(resources.cost_unit, resources.cost_divisor, resources.price, resources.currency)
        wait_s = slurm.QUERY_TIMEOUT_S
        for ask in (self._config, self._factors, self._defaults):  # all at the same time
            ask(wait_s=0.0)
        partitions = self._partitions(resources.partition, wait_s=wait_s)
        if not partitions:
            return None
        config, defaults = self._config(wait_s=wait_s) or {}, self._defaults(wait_s=wait_s) or {}
        account = resources.account or defaults.get("", "")
        qos = resources.qos or defaults.get(account, "")
        limit_s, extras, quotes = walltime_s(resources.time), site_extras(resources), []
        walltime = None if limit_s is None else 60.0 * math.ceil(limit_s / 60)  # SLURM counts it in whole minutes
        for partition in partitions:  # SLURM takes any of several: the dearest is told
            name = partition["PartitionName"]
            tariff, lacks = self._tariff(partition, config, qos, wait_s)
            threads = self._threads(name, wait_s=wait_s) if by_core(config) else 1
            tres = with_typed_gpus(asked_tres(resources, partition, config, threads, extras), tariff.weights)
            weights = None if tariff.weights is None else dict(tariff.weights)
            quotes.append(Quote(
                tres, weights, tariff.rule, tariff.usage_factor, walltime, name, account, qos,
                unit.name, unit.divisor, unit.price, unit.currency, lacks,
            ))  # fmt: skip
        return max(quotes, key=lambda quote: quote.tariff.rate(quote.tres))

    def tariff(self, partition: str, qos: str) -> Tariff | None:
        """Give how jobs of a partition and a QOS are charged now; None where SLURM does not tell."""
        found = self._partitions(partition)
        tariff, lacks = self._tariff(found[0], self._config() or {}, qos) if found else (None, ())
        return None if lacks else tariff

    def got(self, job_id: str) -> dict[str, float] | None:
        """Give the TRES that a job which runs has got."""
        return self._kept(f"job {job_id}", lambda: self._ask_job(job_id), KEPT_S)

    def accounted(
        self, job_ids: Iterable[str], *, wait_s: float | None = None, kept_s: float = ACCOUNTED_KEPT_S
    ) -> dict[str, Accounted]:
        """Give what accounting says of jobs, by id; it may lag behind."""
        wanted = sorted(set(job_ids))
        missing = [job for job in wanted if (known := self._answers.get(f"sacct {job}")) is None or not known.ended]
        if missing:
            listed = ",".join(missing)
            told = self._kept(f"sacct of {listed}", lambda: self._ask_sacct(f"--jobs={listed}"), kept_s, wait_s)
            self._answers |= {f"sacct {one.job_id}": one for one in told or ()}
        answers = {job: self._answers.get(f"sacct {job}") for job in wanted}
        return {job: answer for job, answer in answers.items() if answer is not None}

    def jobs_since(self, days: int, *, wait_s: float | None = None) -> list[Accounted] | None:
        """Give every job of hpcmagic's that this user had in so many days; None where there is no accounting."""
        return self.jobs_from(f"now-{days}days", wait_s=wait_s)

    def jobs_from(
        self, begin: str, *, wait_s: float | None = None, kept_s: float = ACCOUNTED_KEPT_S
    ) -> list[Accounted] | None:
        """Give every job of hpcmagic's that this user had since a time in one of sacct's forms, e.g. 2026-11-01."""
        asked = (f"--user={me()}", f"--starttime={begin}", "--name=hpcmagic")
        return self._kept(f"jobs since {begin}", lambda: self._ask_sacct(*asked), kept_s, wait_s)

    def balances(self, account: str, qos: str = "", *, wait_s: float | None = None) -> list[Balance]:
        """Give what is left of every limit on minutes that binds this user's jobs of an account, the least first."""
        name = account or (self._defaults(wait_s=wait_s) or {}).get("", "")
        if not name:
            return []
        kept_s = BALANCE_SHOWN_S if wait_s is None else BALANCE_KEPT_S
        asked = self._kept(f"balance {name} {qos}", lambda: self._shared_balances(name, qos, kept_s), kept_s, wait_s)
        return sorted(asked or [], key=lambda one: (one.what != "billing", one.left))

    def _kept(self, what: str, ask: Callable[[], T | None], kept_s: float, wait_s: float | None = None) -> T | None:
        """Give an answer, asked anew when it is old; one that is known is waited for only by who says how long."""
        with self._lock:
            asking = self._asking.get(what)
            asked_s, answered = self._asked.get(what, (float("-inf"), False))
            due = self._clock() >= asked_s + (kept_s if answered else ASK_AGAIN_S)
            if due and (asking is None or not asking.is_alive()):
                asking = threading.Thread(target=self._ask, args=(what, ask), name="hpcmagic-charges", daemon=True)
                self._asking[what] = asking
                asking.start()
        if asking is not None and (wait_s is not None or what not in self._answers):
            asking.join(self._wait_s if wait_s is None else wait_s)
        answer: T | None = self._answers.get(what)
        return answer

    def _ask(self, what: str, ask: Callable[[], Any]) -> None:
        try:
            answer = ask()
        except (HpcMagicError, OSError, ValueError, LookupError):  # what was known stays
            answer = None
        if answer is not None:
            self._answers[what] = answer
        self._asked[what] = self._clock(), answer is not None

    def _tariff(
        self, partition: Mapping[str, str], config: Mapping[str, str], qos: str, wait_s: float | None = None
    ) -> tuple[Tariff, tuple[str, ...]]:
        """Give a partition's tariff under a QOS, and what is not known of it."""
        weights = partition.get("TRESBillingWeights", "")
        factor = None
        counted = config.get("AccountingStorageType", "slurmdbd").endswith("slurmdbd")
        if counted:  # else there are no QOS
            factor = (self._factors(wait_s=wait_s) or {}).get(qos)
        lacks = (NO_FACTOR,) if counted and factor is None else ()
        rule = rule_of(config.get("PriorityFlags", ""))
        return Tariff(weights_of(weights) if weights else None, rule, 1.0 if factor is None else factor), lacks

    def _partitions(self, names: str, *, wait_s: float | None = None) -> list[dict[str, str]] | None:
        """Give the partitions of these names; without one, that of a job without a choice."""

        def ask() -> list[dict[str, str]] | None:
            asked = [("scontrol", "-o", "show", "partition", *([name] if name else [])) for name in names.split(",")]
            found = [_fields(line) for command in asked for line in self._said(*command)]
            found = [one for one in found if one.get("PartitionName") and (names or one.get("Default") == "YES")]
            return found or None

        return self._kept(f"partition {names}", ask, KEPT_S, wait_s)

    def _config(self, *, wait_s: float | None = None) -> dict[str, str] | None:
        def ask() -> dict[str, str] | None:
            pairs = (line.partition("=") for line in self._said("scontrol", "show", "config"))
            return {key.strip(): value.strip() for key, _, value in pairs} or None

        return self._kept("config", ask, KEPT_S, wait_s)

    def _factors(self, *, wait_s: float | None = None) -> dict[str, float] | None:
        """Give every QOS's UsageFactor, by its name."""

        def ask() -> dict[str, float] | None:
            rows = _rows(self._said("sacctmgr", "-n", "-P", "show", "qos", "format=name,usagefactor"), 2)
            return {name: float(factor) for name, factor in rows if factor} or None

        return self._kept("factors", ask, KEPT_S, wait_s)

    def _defaults(self, *, wait_s: float | None = None) -> dict[str, str] | None:
        """Give this user's default QOS by account, and the default account under the empty name."""

        def ask() -> dict[str, str] | None:
            shown = "format=defaultaccount,account,defaultqos,qos"
            here = (self._config(wait_s=slurm.QUERY_TIMEOUT_S) or {}).get("ClusterName", "")
            which = ["withassoc", *([f"cluster={here}"] if here else []), shown]  # one accounting may serve several
            rows = _rows(self._said("sacctmgr", "-n", "-P", "show", "user", me(), *which), 4)
            found = {account: _default_qos(default, qos) for _, account, default, qos in rows}
            return {**found, "": rows[0][0]} if rows else None

        return self._kept("defaults", ask, KEPT_S, wait_s)

    def _threads(self, partition: str, *, wait_s: float | None = None) -> int:
        """Give the most threads that a core of the partition has: SLURM allocates whole cores."""

        def ask() -> int:
            said = self._said("sinfo", "--noheader", f"--partition={partition}", "--format=%Z")
            return max((int(line) for line in said if line.strip().isdigit()), default=1)

        return self._kept(f"threads {partition}", ask, KEPT_S, wait_s) or 1

    def _ask_job(self, job_id: str) -> dict[str, float] | None:
        said = " ".join(self._said("scontrol", "-o", "show", "job", job_id))
        tres = re.search(r"(?<!\w)(?:Alloc)?TRES=(\S+)", said)
        return tres_of(tres[1]) if tres and re.search(r"JobState=(RUNNING|SUSPENDED)", said) else None

    def _ask_sacct(self, *which: str) -> list[Accounted] | None:
        lines = self._run(("sacct", "-X", "-n", "-P", *which, f"--format={SACCT}"))
        return None if lines is None else [_accounted(row) for row in _rows(lines, 8)]

    def _shared_balances(self, account: str, qos: str, kept_s: float) -> list[Balance] | None:
        """Give what another kernel was told lately, else ask, and let the others know."""
        if self._board is None:
            return self._ask_balances(account, qos)
        name = slurm.note_name("balance", account, qos)
        note = self._board.read(name)
        known = _balances_of(note.value) if note is not None and self._clock() - note.at_s < kept_s else None
        if known is not None:
            return known
        asked_s = self._clock()
        told = self._ask_balances(account, qos)
        if told is not None:
            self._board.post(name, [asdict(one) for one in told], asked_s)
        return told

    def _ask_balances(self, account: str, qos: str) -> list[Balance] | None:
        """Ask for the limits of an account, of those above it, and of the QOS; where that is refused, sshare."""
        found: list[Balance] = []
        known, above = False, account
        for _ in range(MOST_PARENTS):
            asked = ("scontrol", "-o", "show", "assoc_mgr", "flags=assoc", f"users={me()}", f"accounts={above}")
            told = [one for one in map(_fields, self._said(*asked)) if one.get("Account") == above]
            known = known or bool(told)
            for one in told:
                found += _balances(f"account {above}" if not one["UserName"] else f"you in account {above}", one)
            above = next((p.partition("(")[0] for one in told if (p := one.get("ParentAccount", ""))), "")
            if not above:
                break
        if not known:
            return self._ask_sshare(account)
        for one in map(_fields, self._said("scontrol", "-o", "show", "assoc_mgr", "flags=qos", f"qos={qos}")):
            if qos and one.get("QOS", "").partition("(")[0] == qos:
                found += _balances(f"QOS {qos}", one)
        return found

    def _ask_sshare(self, account: str) -> list[Balance] | None:
        """Give the limit on billing by sshare: it tells of no other limit what was used."""
        shown = ("--format=account,user,rawusage,grptresmins",)
        rows = _rows(self._said("sshare", "-n", "-P", f"--accounts={account}", f"--users={me()}", *shown), 4)
        found = []
        for name, user, seconds, limits in rows:
            limit = tres_of(limits).get("billing")
            if limit is not None and name.strip() == account:
                whose = f"you in account {account}" if user.strip() else f"account {account}"
                found.append(Balance(whose, "billing", limit, float(seconds) / 60))
        return found if rows else None

    def _said(self, *command: str) -> list[str]:
        return self._run(command) or []


def _default_qos(default: str, allowed: str) -> str:
    """Give the QOS of a job that names none: the association's default, else its only one, else `normal`."""
    names = [name for name in allowed.split(",") if name]
    return default or (names[0] if len(names) == 1 else "normal")


def _balances(whose: str, told: Mapping[str, str]) -> list[Balance]:
    """Read what is limited in ``GrpTRESMins=cpu=9000(12),billing=5000(0),mem=N(0)``: limit, and what was used."""
    limits, runs = (
        {name: (limit, float(used)) for name, limit, used in re.findall(r"([\w/:.-]+)=(N|\d+)\(([\d.]+)\)", text)}
        for text in (told.get("GrpTRESMins", ""), told.get("GrpTRESRunMins", ""))
    )
    return [
        Balance(whose, name, float(limit), used, runs.get(name, ("N", 0.0))[1])
        for name, (limit, used) in limits.items()
        if limit != "N"
    ]


def _balances_of(value: Any) -> list[Balance] | None:
    """Read what was posted; None where it makes no sense."""
    try:
        return [
            Balance(str(one["whose"]), str(one["what"]), *(float(one[n]) for n in ("limit", "used", "promised")))
            for one in value
        ]
    except (TypeError, ValueError, LookupError):
        return None


def _accounted(row: Sequence[str]) -> Accounted:
    job, state, elapsed, tres, partition, qos, account, start = row
    return Accounted(job, state or "UNKNOWN", float(elapsed or 0), tres_of(tres), partition, qos, account, start)


def _fields(line: str) -> dict[str, str]:
    """Read one of scontrol's lines: ``Name=value Name=value``; of a name that comes again the first counts."""
    found: dict[str, str] = {}
    for name, value in re.findall(r"(?:^|(?<=\s))([A-Za-z/_:]+)=(\S*)", line):
        found.setdefault(name, value)
    return found


def _rows(lines: Iterable[str], columns: int) -> list[list[str]]:
    """Cut lines of ``a|b|c`` into their columns."""
    return [row for line in lines if len(row := line.split("|")) == columns]


def _lines(command: Sequence[str]) -> list[str] | None:
    """Run one of SLURM's commands; None where it fails."""
    answer = slurm.run(command, timeout_s=slurm.QUERY_TIMEOUT_S)
    return answer.stdout.splitlines() if answer.returncode == 0 else None


def me() -> str:
    """Give this user's name; a container may know none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


BOOKS = Books(board=slurm.own_board())
