"""Files of profiles: read, their shape checked, their lines found again."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any

from hpcmagic.errors import ProfileError
from hpcmagic.forms import FILE_KEYS, guess

TOP = ("default", "profiles")
ENCODING = "utf-8-sig"  # some editors put a mark before the first line
Files = list[tuple[Path, dict[str, Any]]]  # built in, the site's, the user's: a later one overrides


def read_file(path: Path) -> dict[str, Any]:
    """Read one file of profiles; empty when there is none."""
    try:
        text = path.read_text(encoding=ENCODING)
        content = tomllib.loads(text)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"Cannot read {path}: {error}.", "Mend or remove that file.") from error
    except tomllib.TOMLDecodeError as error:
        said = str(error).replace("at end of document", f"at the end, line {len(text.splitlines())}")
        mend = 'Mend that line; text stands in quotes: `mem = "16G"`.'
        raise ProfileError(f"{path} is not TOML: {said}.", mend) from error
    for key, value in content.items():
        if key not in TOP:
            raise ProfileError(f"{path}: unknown key {key!r}.", _belongs(key, value))
    if not isinstance(content.get("default", ""), str):
        raise ProfileError(f"{path}: `default` {content['default']!r} is no name.", 'Write `default = "NAME"`.')
    profiles = content.get("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(p, dict) for p in profiles.values()):
        raise ProfileError(f"{path}: `profiles` must hold tables.", "Write `[profiles.NAME]` above the keys.")
    return content


def _belongs(key: str, value: Any) -> str:
    """Say where a key at the top of a file belongs."""
    if difflib.get_close_matches(key, TOP, 1, 0.7):
        return guess(key, TOP)
    if isinstance(value, dict):
        return f"A profile's table is `[profiles.{key}]`."
    known = difflib.get_close_matches(key, FILE_KEYS, 1, 0.7)
    return f"`{known[0]}` goes below a line `[profiles.NAME]`." if known else guess(key, TOP)


def all_names(files: Files) -> list[str]:
    """Give the names of all profiles of these files."""
    return sorted({name for _, content in files for name in content.get("profiles", {})})


def origin_of(path: Path, name: str) -> str:
    """Say where a value comes from: a profile of a file, or one that is built in."""
    return f"profile {name} in {path}" if path.suffix else f"built-in profile {name}"


def line_of(text: str, name: str, key: str = "") -> int:
    r"""Give the number of the line where a profile, or a key of it, stands in a file; 0 = not found.

    >>> line_of('[profiles.cpu]\nmem = "1G"', "cpu", "mem")
    2
    """
    here = False
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*profiles\s*\.([^\]]*)\]", line):
            words = [word.strip(" \t\"'") for word in header[1].split(".", 1)]
            here = words[0] == name
            if here and words[1:] == [key] * bool(key):
                return number
        elif here and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
            return number
    return 0
