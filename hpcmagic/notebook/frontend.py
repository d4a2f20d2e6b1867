"""What the front end tells: which notebook this is, and whether a person sits at it."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Any

from hpcmagic.rendezvous import slug


def shell() -> Any:
    """Give IPython's shell, or None in a plain script."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def notebook_path() -> Path | None:
    """Give the notebook's path where the front end tells it (Jupyter Server, VS Code)."""
    told = os.environ.get("JPY_SESSION_NAME")
    if not told and shell() is not None:
        told = shell().user_ns.get("__vsc_ipynb_file__")
    return Path(told) if told and told.endswith(".ipynb") else None


def notebook_identity() -> dict[str, int]:
    """Give the notebook file's device and inode: they stay when it is renamed."""
    path = notebook_path()
    if path is None or not path.is_file():
        return {}
    info = path.stat()
    return {"device": info.st_dev, "inode": info.st_ino}


def session_name() -> tuple[str, bool]:
    """Give a name for this notebook's session, and whether the notebook's path made it."""
    path = notebook_path()
    if path is not None:
        return slug(str(path.with_suffix(""))), True
    return f"session-{secrets.token_hex(2)}", False


def held_name() -> str:
    """Give the name of the session that this notebook's magics hold; empty = none, or there are no magics."""
    registry = getattr(getattr(shell(), "magics_manager", None), "registry", {})
    return getattr(registry.get("HpcMagics"), "session_name", None) or ""


def unattended() -> bool:
    """Whether this kernel has nobody who could answer: nbclient and papermill allow no input."""
    kernel = getattr(shell(), "kernel", None)
    return kernel is not None and not getattr(kernel, "_allow_stdin", True)


def defined_here(name: str) -> bool:
    """Whether the user has bound this name in the notebook, or in the script that runs."""
    here = shell()
    if here is None:
        return name in vars(sys.modules["__main__"])
    return name in here.user_ns and name not in getattr(here, "user_ns_hidden", ())
