"""Profiles for a role: who may use one, by the Unix groups in its `allow_groups`.

A signpost and no lock: what an account may use is the batch system's to hold.
"""

from __future__ import annotations

import contextlib
import functools
import grp
import os
import pwd
from typing import Any

from hpcmagic.errors import ProfileError
from hpcmagic.forms import CHECKS
from hpcmagic.profile_files import Files, all_names, origin_of

MOST_GROUPS = 12  # of a user's own that are named


def role_of(files: Files, name: str) -> tuple[Any, str] | None:
    """Give the groups that a profile is for, and who says so: the site's word is not the user's to change."""
    for path, content in files:
        part = content.get("profiles", {}).get(name, {})
        if "allow_groups" in part:
            return part["allow_groups"], origin_of(path, name)
    return None


def _others_groups(files: Files, name: str) -> tuple[str, ...]:
    """Give the groups that a profile is for, where this user is in none of them."""
    said = role_of(files, name)
    groups: tuple[str, ...] = CHECKS["allow_groups"]("allow_groups", *said) if said else ()
    return groups if groups and own_groups().isdisjoint(groups) else ()


def may_use(files: Files, name: str) -> bool:
    """Whether this user may use a profile; of malformed groups is told who uses it."""
    try:
        return not _others_groups(files, name)
    except ProfileError:
        return True


def require_role(files: Files, name: str) -> None:
    """Refuse a profile that is for members of other groups."""
    if groups := _others_groups(files, name):
        yours = ", ".join(other for other in all_names(files) if may_use(files, other))
        mine = sorted(own_groups())
        raise ProfileError(
            f"Profile {name!r} is for members of {' or '.join(groups)}; "
            f"you are in {', '.join(mine[:MOST_GROUPS])}{' …' if len(mine) > MOST_GROUPS else ''}.",
            f"Those that you may use: {yours}. Your site's support adds members to a group.",
        )


@functools.cache
def own_groups() -> frozenset[str]:
    """Give the names of this user's Unix groups; looked up once, since a directory service may have to answer."""
    numbers = {os.getegid(), *os.getgroups()}
    with contextlib.suppress(KeyError):
        me = pwd.getpwuid(os.getuid())
        numbers.update(os.getgrouplist(me.pw_name, me.pw_gid))
    names = set()
    for number in numbers:
        with contextlib.suppress(KeyError):
            names.add(grp.getgrgid(number).gr_name)
    return frozenset(names)
