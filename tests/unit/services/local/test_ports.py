"""Ports of an embedded mesh."""

from __future__ import annotations

import socket

from services.local.ports import choose_ports


def test_a_taken_port_is_replaced_by_a_free_one() -> None:
    """Defaults are kept where they are free; nothing is given twice."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen(1)
        taken = holder.getsockname()[1]
        ports = choose_ports({"a": taken, "b": taken, "c": 0})
    assert taken not in ports.values()
    assert len(set(ports.values())) == 3
