"""By which names an HTTP service of this machine may be asked.

A web page can have its own name lead to 127.0.0.1. For the browser the service is then the page's
own site: the page may send it what it likes, and reads the answers. Only the request's host tells.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection
from functools import lru_cache

from services.common.addresses import parse_address

REASON_HOST = "HOST_NOT_ALLOWED"
SETTING = "mesh.access.http_hosts"
_MOST_SHOWN = 64


def own_hosts(listen: str, named: Collection[str]) -> Callable[[str], bool]:
    """Returns what tells whether a service may be asked by a request's host.

    On loopback these are addresses, which no page has for its name, `localhost`, and what is named;
    also none, since browsers always send one. Elsewhere it is any: who reaches the service may ask.

    Args:
        listen: Where it listens.
        named: Further names.
    """
    if not parse_address(listen, allow_port_zero=True).is_loopback:
        return lambda _: True
    known = {"", "localhost", *named}

    @lru_cache(maxsize=64)
    def is_own(host: str) -> bool:
        bracket, _, _ = host.partition("]")
        name = bracket[1:] if host.startswith("[") else host.partition(":")[0]
        name = name.lower().removesuffix(".")
        if name in known or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    return is_own


def host_problem(host: str) -> str:
    """Returns why a request is refused, in one line."""
    return f"the host {host[:_MOST_SHOWN]!r} is no name of this machine (limit: {SETTING})"
