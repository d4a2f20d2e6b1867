"""The documents say what the code does: every error, option and key has its place, and no link leads nowhere."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from hpcmagic import errors, rendezvous
from hpcmagic.launch import base, charges, offers, poll, slurm
from hpcmagic.notebook import causes, session, waiting
from hpcmagic.notebook.options import names_parser, remote_parser
from hpcmagic.profiles import FILE_KEYS

REPO = Path(__file__).parents[2]
DOCS = REPO / "docs"
PAGES = [REPO / "README.md", *sorted(DOCS.glob("*.md"))]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
ERRORS = {name for name, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__}


def prose(page):
    """A page without its code blocks."""
    return FENCED.sub("", page.read_text())


def anchors(page):
    """What the headings of a page can be linked by."""
    headings = re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def headings(page, level):
    """The headings of one level of a page, in order."""
    return re.findall(rf"^{'#' * level} +(.+)$", prose(page), re.MULTILINE)


def table_cells(page):
    """What stands between backticks in the first column of the page's tables."""
    rows = re.findall(r"^\| (.*?) \|", prose(page), re.MULTILINE)
    return {word for row in rows for code in re.findall(r"`([^`]+)`", row) for word in re.split(r"[ ,]+", code)}


def messages():
    """The first line of every error that the package raises, with `…` for each value."""

    def text(node):
        if isinstance(node, ast.Constant):
            return str(node.value)
        return "".join(map(text, node.values)) if isinstance(node, ast.JoinedStr) else "…"

    for path in (REPO / "hpcmagic").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS and node.args:
                yield text(node.args[0]).replace("`", "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Every relative link of a page names a file that is there, and every anchor a heading of it."""
    broken = []
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_pages_reached():
    """A reader comes from the README to every page."""
    linked = {(REPO / target.partition("#")[0]).resolve() for target in LINK.findall(prose(REPO / "README.md"))}
    assert {page.name for page in DOCS.glob("*.md") if page not in linked} == set()


def test_errors_have_entries():
    """Every class of error has its chapter in the page on troubleshooting, and no chapter is of one that is gone."""
    chapters = {heading for heading in headings(DOCS / "troubleshooting.md", 2) if " " not in heading}
    assert chapters == ERRORS


def test_entries_are_errors():
    """Every entry on troubleshooting begins as one of the errors that the code raises."""
    entries = [heading.strip("`").rstrip("… .") for heading in headings(DOCS / "troubleshooting.md", 3)]
    raised = set(messages())
    assert [entry for entry in entries if not any(message.startswith(entry) for message in raised)] == []


def test_options_documented():
    """Every option of `%%remote`, `%push` and `%pull` stands in the page on remote cells."""
    parsers = (remote_parser("%%remote"), names_parser("%push", ""))
    options = {option for parser in parsers for option in parser._option_string_actions}
    assert options - table_cells(DOCS / "remote-cells.md") == set()


def test_keys_documented():
    """Every key of a profile stands in the table of the page on profiles, and none that there is not."""
    table = (DOCS / "profiles.md").read_text().partition("## The keys")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(FILE_KEYS)


def test_modules_in_the_picture():
    """The listing of folders in the page on how it works names every module, and none that is gone."""
    listing = next(block for block in FENCED.findall((DOCS / "how-it-works.md").read_text()) if "errors.py" in block)
    listed, folder = set(), ""
    for indent, name in re.findall(r"^( +)([\w./]+)", listing, re.MULTILINE):
        folder = folder if len(indent) > 2 else name if name.endswith("/") else ""
        if name != folder:
            listed.add(f"{folder}{name.removesuffix('.py')}")
    package = REPO / "hpcmagic"
    modules = {str(p.relative_to(package).with_suffix("")) for p in package.rglob("*.py") if p.stem != "__init__"}
    assert listed == modules


def test_operators_figures():
    """What the page for operators says of calls, ports and disk is what the code does."""
    page = " ".join((DOCS / "operators.md").read_text().split())
    step_s, longest_s = waiting.ASK_S
    asked, at_s = 0, step_s
    while at_s < 60:
        asked, step_s = asked + 1, min(step_s * 1.5, longest_s)
        at_s += step_s
    for said in (
        f"{asked} times in the first minute, then every {longest_s:g} s",
        f"of that job alone every {session.SILENT_ASK_S:g} s while",
        f"asked in the last {base.FRESH_S:g} s",
        f"every {poll.PACE_S[0]:g} s after a job's state, reason or nodes",
        f"every {poll.PACE_S[1]:g} s at last",
        f"is {3600 / poll.PACE_S[0]:g} `squeue` at most, and about {3600 / poll.PACE_S[1]:g} while",
        {120.0: "at most every two minutes for all"}[charges.BALANCE_SHOWN_S],
        f"repeated for {causes.SETTLE_S:g} s at most",
        f"once in {offers.ASK_AGAIN_S / 60:g} minutes",
        f"after {slurm.QUERY_TIMEOUT_S:g} s ({slurm.COMMAND_TIMEOUT_S:g} s where it starts",
        f"last {rendezvous.ENDED_KEPT} sessions",
    ):
        assert said in page


FAULTS_AT_LEAST = 30


def fault_rows():
    """The rows of the table of faults: number, and the cells behind it."""
    rows = [
        row.strip("|").split("|") for row in (DOCS / "faults.md").read_text().splitlines() if row.startswith("| ")
    ]
    return [[cell.strip() for cell in row] for row in rows if row[0].strip().isdigit()]


def test_faults_numbered():
    """The faults are numbered without a gap, every column is filled in, and there are enough of them."""
    rows = fault_rows()
    assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= FAULTS_AT_LEAST
    assert [row for row in rows if len(row) != 7 or not all(row)] == []


def test_every_fault_has_its_test():
    """Every row of the table of faults names a test that is there."""
    missing = []
    for number, *_, named in fault_rows():
        for file, test in re.findall(r"`?(\w+\.py)::(\w+)`?", named) or [("", "")]:
            paths = list((REPO / "tests").rglob(file)) if file else []
            if not any(re.search(rf"^def {test}\(", path.read_text(), re.MULTILINE) for path in paths):
                missing.append(f"{number}: {named}")
    assert missing == []
