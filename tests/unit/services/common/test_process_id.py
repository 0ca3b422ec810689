"""Names of processes: none is given twice, wherever it is given."""

from __future__ import annotations

import os
import socket

import pytest

from services.common.process_id import new_process_id


def test_host_and_process_id_may_be_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in two containers, which share a host's name and each count processes from one."""
    monkeypatch.setattr(socket, "gethostname", lambda: "host")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    names = [new_process_id() for _ in range(1_000)]
    assert len(set(names)) == 1_000
    assert all(name.startswith("host-1-") for name in names)
