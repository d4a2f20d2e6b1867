"""On which address of its host a process of the job listens: never on all of them."""

from __future__ import annotations

import socket

from hpcmagic.errors import LaunchError
from hpcmagic.rendezvous import Request


def listen_address(request: Request) -> str:
    """Give the address to listen on: loopback on this machine, else the one that routes to the notebook."""
    if request.launcher != "slurm":
        return "127.0.0.1"
    if request.interface:
        import psutil

        addresses = [
            address.address
            for address in psutil.net_if_addrs().get(request.interface, [])
            if address.family == socket.AF_INET
        ]
        if not addresses:
            raise LaunchError(
                f"This node has no address on the network interface {request.interface!r}",
                "Name another `interface` in your profile.",
            )
        return str(addresses[0])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((request.submit_host, 9))  # sends nothing: it only asks the routing table
            return str(probe.getsockname()[0])
    except OSError:  # the nodes cannot resolve the notebook's host
        return socket.gethostbyname(socket.gethostname())
