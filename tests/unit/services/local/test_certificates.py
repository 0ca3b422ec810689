"""Self-made certificates: whose they are, who may read them, how they are renewed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from cryptography import x509

from services.cli.app import run
from services.local.certificates import NAMES, make_certificates
from services.local.errors import CommandError
from tests import certificates


def dns_names(path: Path) -> list[str]:
    """Returns the DNS names of a certificate, in order."""
    found = x509.load_pem_x509_certificate(path.read_bytes()).extensions
    names = found.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.DNSName)


def test_self_made_certificates_name_their_holder_first() -> None:
    """The holder's name is the first in its certificate, under the root, for both sides."""
    for name in ("router-inference", "triton"):
        assert dns_names(certificates.folder() / name / "tls.crt")[0] == name


def test_making_them_again_renews_under_the_same_root(tmp_path: Path) -> None:
    """Services that trust the root go on trusting the renewed certificates."""
    (own,) = make_certificates(tmp_path, names=["trainer"])
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    make_certificates(tmp_path, names=["trainer"])
    after = {path.name: path.read_bytes() for path in own.iterdir()}
    assert before.keys() == after.keys() == {"ca.crt", "tls.crt", "tls.key"}
    assert [name for name in before if before[name] == after[name]] == ["ca.crt"]


def test_nobody_else_on_the_machine_reads_the_keys(tmp_path: Path) -> None:
    """The folder is its owner's alone."""
    make_certificates(tmp_path / "made", names=["trainer"])
    assert (tmp_path / "made").stat().st_mode & 0o077 == 0
    assert (tmp_path / "made/root/tls.key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_containers_read_their_own_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    """Services, Triton and Redis run as other users there; each sees its own folder only."""
    before = os.umask(umask)
    try:
        command = ["certificates", str(tmp_path / "tls"), "--redis", "redis:6379"]
        assert run(command) == 0
        (tmp_path / "tls/redis/users.acl").chmod(0o600)
        assert run(command) == 0
        assert run(["keys", "add", str(tmp_path / "tls/keys/keys.toml"), "me"]) == 0
    finally:
        os.umask(before)
    for name in (*NAMES, "keys"):
        folder = tmp_path / "tls" / name
        assert folder.stat().st_mode & 0o005 == 0o005, name
        for path in folder.iterdir():
            # What Compose itself reads for a service is for nobody else.
            wanted = 0 if path.name == "redis.env" else 0o004
            assert path.stat().st_mode & 0o004 == wanted, path
    assert (tmp_path / "tls").stat().st_mode & 0o077 == 0
    assert (tmp_path / "tls/root/tls.key").stat().st_mode & 0o077 == 0


def test_a_broken_root_is_one_line(tmp_path: Path) -> None:
    """A root that cannot be used is not replaced without a word."""
    shutil.copytree(certificates.folder() / "root", tmp_path / "root")
    (tmp_path / "root/tls.key").write_text("nonsense")
    with pytest.raises(CommandError, match="cannot be used"):
        make_certificates(tmp_path, names=["trainer"])


def test_the_command_makes_one_folder_per_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tiercel certificates` makes what compose mounts, and says what it made."""
    assert run(["certificates", str(tmp_path / "tls")]) == 0
    assert {path.name for path in (tmp_path / "tls").iterdir()} == {*NAMES, "root"}
    assert capsys.readouterr().err.count("valid for 365 days") == len(NAMES)


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_folder_that_others_can_read_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: int
) -> None:
    """One that was there stays as open as it was; the keys in it have to be readable."""
    folder = tmp_path / "there"
    folder.mkdir()
    folder.chmod(mode)
    assert run(["certificates", str(folder), "--name", "trainer"]) == 0
    assert ("other users of this machine" in capsys.readouterr().err) == (mode == 0o755)
