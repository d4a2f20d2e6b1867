"""Whether this process may open as many files as a connection to a session takes.

Where it may not, libzmq ends the whole process rather than give an error.
"""

from __future__ import annotations

import resource
from pathlib import Path

from hpcmagic.errors import ChannelError

NEEDED = 64  # sockets, pipes and events of one client, and files that are read meanwhile; measured: 30


def require_descriptors() -> None:
    """Refuse to begin what could not be ended well.

    Raises
    ------
    ChannelError
        Too few are left.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        used = sum(1 for _ in Path("/dev/fd").iterdir())
    except OSError:  # not even this one
        used = limit
    if limit != resource.RLIM_INFINITY and limit - used < NEEDED:
        raise ChannelError(
            f"This process may open {limit} files, and {used} are open: a session needs {NEEDED} more.",
            "Close some, or restart the kernel; `ulimit -n` where the kernel is started sets the limit.",
        )
