"""Packets that the kernel loses, on the loopback of a network namespace of our own."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import shutil
import subprocess
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_UNPACKED = Path("build/tools")
_LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
_PACKAGES = ("iptables", "libip4tc2", "libip6tc2", "libxtables12")


class PacketsError(Exception):
    """This machine does not let us; the text says why."""


def _enter_namespace() -> None:
    """Gives this process, and what it starts from now on, a loopback of their own."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        reason = os.strerror(ctypes.get_errno())
        raise PacketsError(f"no network namespace of our own: {reason}")
    _run(["ip", "link", "set", "lo", "up"])


@functools.cache
def here() -> PacketLoss | PacketsError:
    """Returns what drops packets, or why nothing does; the first call enters the namespace."""
    try:
        return PacketLoss()
    except PacketsError as error:
        return error


def problem() -> str:
    """Says why no packets can be lost on this machine; empty if they can."""
    found = here()
    return str(found) if isinstance(found, PacketsError) else ""


class PacketLoss:
    """Rules that drop packets to or from a port of the namespace's loopback."""

    def __init__(self) -> None:
        """Enters a network namespace for good; must come before any thread and any socket.

        Debian's iptables is unpacked beside the project where none is installed.

        Raises:
            PacketsError: There is no iptables, or this process may not do that.
        """
        self._command, self._variables = _iptables()
        _enter_namespace()
        self.mend()

    def drop(self, port: int, *, towards: bool, share: float = 1.0) -> None:
        """Drops a share of the packets that go to a port, or of those that come from it."""
        way = "--dport" if towards else "--sport"
        rule = ["-A", "INPUT", "-i", "lo", "-p", "tcp", way, str(port)]
        if share < 1.0:
            rule += ["-m", "statistic", "--mode", "random", "--probability", f"{share:.4f}"]
        _run([*self._command, *rule, "-j", "DROP"], self._variables)

    def mend(self) -> None:
        """Drops nothing any more."""
        _run([*self._command, "-F", "INPUT"], self._variables)


def _iptables() -> tuple[list[str], dict[str, str]]:
    installed = shutil.which("iptables")
    if installed:
        return [installed, "-w"], {}
    program = (_UNPACKED / "usr/sbin/xtables-legacy-multi").absolute()
    _UNPACKED.mkdir(parents=True, exist_ok=True)
    with (_UNPACKED / "unpacking.lock").open("w") as lock:
        # The matrix's processes begin together.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _unpack()
    libraries = (_UNPACKED / _LIBRARIES).absolute()
    variables = {"LD_LIBRARY_PATH": str(libraries), "XTABLES_LIBDIR": str(libraries / "xtables")}
    return [str(program), "iptables", "-w"], variables


def _unpack() -> None:
    """Unpacks Debian's package into build/tools; nothing is installed."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise PacketsError("iptables is not installed")
    subprocess.run(["apt-get", "-qq", "download", *_PACKAGES], cwd=_UNPACKED, capture_output=True)
    for package in _PACKAGES:
        found = sorted(_UNPACKED.glob(f"{package}_*.deb"))
        if not found:
            raise PacketsError("iptables is not installed, and its package cannot be had")
        _run(["dpkg", "-x", str(found[-1]), str(_UNPACKED)])
        found[-1].unlink()


def _run(command: list[str], variables: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **(variables or {})}
        )
    except OSError as error:
        raise PacketsError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        raise PacketsError(f"{Path(command[0]).name}: {done.stderr.strip()[:200]}")
