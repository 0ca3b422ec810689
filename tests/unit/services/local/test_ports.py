"""Ports of an embedded mesh."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from services.local.ports import HOST, PortClaims

_HOLDER = """
import sys, time
from services.local.ports import PortClaims
claims = PortClaims()
print(claims.choose({"a": int(sys.argv[1])})["a"], flush=True)
time.sleep(60)
"""


@pytest.fixture
def claims() -> Iterator[PortClaims]:
    """Claims, given back in the end."""
    held = PortClaims()
    yield held
    held.release()


def test_a_taken_port_is_replaced_by_a_free_one(claims: PortClaims) -> None:
    """Defaults are kept where they are free; nothing is given twice."""
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        holder.listen(1)
        taken = holder.getsockname()[1]
        ports = claims.choose({"a": taken, "b": taken, "c": 0})
    assert taken not in ports.values()
    assert len(set(ports.values())) == 3


def test_a_claimed_port_on_which_nobody_listens_yet_is_not_given_again(claims: PortClaims) -> None:
    """Two meshes that start in the same moment choose different ports."""
    port = claims.any_free()
    other = PortClaims()
    assert other.choose({"a": port})["a"] != port
    other.release()


def test_a_released_port_is_given_again(claims: PortClaims) -> None:
    """A mesh that ended leaves its ports to the next."""
    port = claims.any_free()
    claims.release()
    assert claims.choose({"a": port})["a"] == port


def test_a_claim_ends_with_its_process_even_when_that_is_killed(claims: PortClaims) -> None:
    """No file that is left behind keeps a port for ever."""
    port = claims.any_free()
    claims.release()
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(port)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert int(holder.stdout.readline()) == port
    assert not claims.claim(port)
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert claims.claim(port)
