"""The command `hpcmagic`: files of profiles, checked and shown, before anybody uses them.

hpcmagic profile check FILE …    OK, or what is wrong and in which line; exit status 0, 1, or 2 = no such file
hpcmagic profile list            the profiles that you may use, as `%hpc profiles` shows them
hpcmagic profile example         a commented file for a site, to begin with
"""

from __future__ import annotations

import argparse
import difflib
import grp
import sys
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import hpcmagic
from hpcmagic import profiles
from hpcmagic.errors import ProfileError
from hpcmagic.forms import guess
from hpcmagic.profile_files import ENCODING, line_of

GOOD, WRONG, NO_FILE = 0, 1, 2  # exit status; argparse's own for a wrong line is 2 as well


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give its exit status."""
    parser = argparse.ArgumentParser("hpcmagic", description="Look after hpcmagic's profiles.")
    parser.add_argument("--version", action="version", version=hpcmagic.__version__)
    nouns = parser.add_subparsers(required=True, metavar="profile")
    verbs = nouns.add_parser("profile", help="files of profiles").add_subparsers(required=True, dest="verb")
    check = verbs.add_parser("check", help="say of each profile of a file whether it is right; exit status 0, 1 or 2")
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    verbs.add_parser("list", help="show the profiles that you may use, and where each value comes from")
    verbs.add_parser("example", help="print a commented file for a site")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "check":
            return max(check_file(path) for path in options.files)
        print(profiles.every() if options.verb == "list" else example(), end="\n" if options.verb == "list" else "")
    except ProfileError as error:
        print(error, file=sys.stderr)
        return WRONG
    return GOOD


def example() -> str:
    """Give the text of the example for a site."""
    return (files("hpcmagic") / "site_example.toml").read_text(encoding="utf-8")


def check_file(path: Path) -> int:
    """Print what is right and wrong in a file of profiles; give the exit status."""
    try:
        text = path.read_text(encoding=ENCODING)
    except (OSError, UnicodeDecodeError) as error:
        print(f"Cannot read {path}: {error}.", file=sys.stderr)
        return NO_FILE
    try:
        content = profiles.read_file(path)
    except ProfileError as error:
        print(error)
        return WRONG
    wrong = _check_default(path, content)
    if not content:
        print(f"{path}: nothing in it")
    for name, part in content.get("profiles", {}).items():
        found = list(profiles.faults(name, part, path))
        for key, fault in found:
            line = line_of(text, name, key)
            print(f"{path}{f':{line}' if line else ''}: profile {name}: {fault.message}\n  → {fault.mend}")
        if not found:
            print(f"{path}: profile {name}: OK")
            for note in _notes(part):
                print(f"  note: {note}")
        wrong |= bool(found)
    return WRONG if wrong else GOOD


def _check_default(path: Path, content: dict[str, Any]) -> bool:
    """Say whether the default is a profile that there is; give whether it is not."""
    default, here = content.get("default", ""), {**profiles.BUILT_IN["profiles"], **content.get("profiles", {})}
    if not default or default in here:
        return False
    if default in profiles.profile_names(roles=False):
        print(f"{path}: default {default}: OK, though the profile stands in another file")
        return False
    print(f"{path}: default {default!r}: there is no such profile\n  → {guess(default, here)}")
    return True


def _notes(part: dict[str, Any]) -> Iterator[str]:
    """Give what this machine does not know: another one may."""
    groups = part.get("allow_groups", ())
    for group in [groups] if isinstance(groups, str) else groups:
        try:
            grp.getgrnam(group)
        except KeyError:
            near = difflib.get_close_matches(group, [known.gr_name for known in grp.getgrall()], 1, 0.5)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            yield f"There is no group {group!r} on this machine.{meant}"
    if "jobqueue" in part:
        from hpcmagic.launch.jobqueue import site_section

        try:
            site_section(str(part["jobqueue"]))
        except ProfileError as error:
            yield f"{error.message} {error.mend}"


if __name__ == "__main__":
    sys.exit(main())
