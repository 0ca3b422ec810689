"""Finding the environment of Triton and laying out its backends."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.local.triton import environment
from services.local.triton.errors import TritonEnvironmentError


def _fake_triton(root: Path) -> tuple[Path, Path]:
    """Makes the files of a Triton package; returns its directory and its stub."""
    backend = root / "backends" / "python"
    backend.mkdir(parents=True)
    (backend / "libtriton_python.so").write_bytes(b"so")
    (backend / "triton_python_backend_utils.py").write_text("")
    stub = root / "stubs" / "triton_python_backend_stub"
    stub.parent.mkdir()
    stub.write_bytes(b"stub")
    return root, stub


def test_environment_comes_from_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a setting the variable decides, and a missing place is named."""
    monkeypatch.setenv(environment.ENVIRONMENT_VARIABLE, str(tmp_path / "elsewhere"))
    with pytest.raises(TritonEnvironmentError, match="elsewhere"):
        environment.find_environment()


def test_setting_comes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting is used whatever the variable says."""
    monkeypatch.setenv(environment.ENVIRONMENT_VARIABLE, str(tmp_path / "elsewhere"))
    (tmp_path / "chosen" / "bin").mkdir(parents=True)
    (tmp_path / "chosen" / "bin" / "python").touch()
    assert environment.find_environment(tmp_path / "chosen") == tmp_path / "chosen"


def test_the_home_of_nobody_is_told() -> None:
    """As every folder without an environment is."""
    with pytest.raises(TritonEnvironmentError, match=r"^~no-such-user/x: there is no"):
        environment.find_environment("~no-such-user/x")


def test_missing_libpython_names_library_and_package() -> None:
    """The one line says what is missing and how to get it."""
    facts = {"minor": "3.99", "libdir": "/nowhere", "multiarch": "none"}
    with pytest.raises(
        TritonEnvironmentError, match=r"libpython3\.99\.so\.1\.0.*apt-get install libpython3\.99"
    ):
        environment._find_libpython(facts)


def test_own_libpython_comes_first(tmp_path: Path) -> None:
    """The interpreter's own library is taken, also from its multi-architecture directory."""
    (tmp_path / "arch").mkdir()
    (tmp_path / "arch" / "libpython3.99.so.1.0").touch()
    facts = {"minor": "3.99", "libdir": str(tmp_path), "multiarch": "arch"}
    assert environment._find_libpython(facts) == tmp_path / "arch"


def test_backends_are_laid_out_once(tmp_path: Path) -> None:
    """The second time the same directory comes back untouched, without leftovers."""
    triton, stub = _fake_triton(tmp_path / "triton")
    build = tmp_path / "build"
    first = environment._lay_out_backends(triton, stub, build)
    stamp = (first / "python" / stub.name).stat().st_ctime_ns
    assert environment._lay_out_backends(triton, stub, build) == first
    assert (first / "python" / stub.name).stat().st_ctime_ns == stamp
    assert {path.name for path in (first / "python").iterdir()} == {
        "libtriton_python.so",
        "triton_python_backend_stub",
        "triton_python_backend_utils.py",
    }
    assert list(build.iterdir()) == [first]


def test_upgrade_gets_a_directory_of_its_own(tmp_path: Path) -> None:
    """Another stub never lands between the files of the old one."""
    triton, stub = _fake_triton(tmp_path / "triton")
    first = environment._lay_out_backends(triton, stub, tmp_path / "build")
    stub.write_bytes(b"a newer stub")
    assert environment._lay_out_backends(triton, stub, tmp_path / "build") != first
