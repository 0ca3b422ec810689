"""Finds the environment that carries the Triton binary and lays out its backends directory."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from router.folders import checkout, work_folder
from services.local.triton.errors import TritonEnvironmentError
from trainer.shipped import shipped

ENVIRONMENT_VARIABLE = "TIERCEL_TRITON_ENV"
_PROBE_TIMEOUT_S = 30.0
# Where a distribution keeps libpython when the interpreter itself was built without a shared one.
_SYSTEM_LIBRARY_DIRECTORIES = ("/usr/lib/{multiarch}", "/usr/lib64", "/usr/lib", "/usr/local/lib")
_PROBE = """
import json, sys, sysconfig
get = sysconfig.get_config_var
print(json.dumps({
    "minor": f"{sys.version_info[0]}.{sys.version_info[1]}",
    "libdir": get("LIBDIR") or "",
    "multiarch": get("MULTIARCH") or "",
    "purelib": sysconfig.get_paths()["purelib"],
}))
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TritonEnvironment:
    """What a Triton process needs from its Python environment.

    Attributes:
        binary: The `tritonserver` executable.
        bin_directory: First on PATH, so that the stubs find the environment's packages.
        backends_directory: Directory for `--backend-directory`.
        cache_directory: Directory for `--cache-directory`.
        library_path: Value of LD_LIBRARY_PATH.
        python_version: Minor version of the stubs, for example "3.11".
    """

    binary: Path
    bin_directory: Path
    backends_directory: Path
    cache_directory: Path
    library_path: str
    python_version: str


def default_environment() -> Path:
    """Returns where the project's own environment lies: in the checkout, else the user's cache."""
    root = checkout()
    return root / ".venv-triton" if root else work_folder("venv-triton")


def make_environment(path: Path) -> None:
    """Makes an environment with the Triton binary and what its Python stubs need.

    Raises:
        TritonEnvironmentError: venv or pip failed; what they said is on stderr.
    """
    requirements = shipped("requirements")
    steps = (
        (sys.executable, "-m", "venv", str(path)),
        (
            *(str(path / "bin" / "python"), "-m", "pip", "install", "--quiet"),
            *("--constraint", str(requirements / "triton-constraints.txt")),
            *("--requirement", str(requirements / "triton.txt")),
        ),
    )
    for step in steps:
        if subprocess.run(step, stdout=sys.stderr, check=False).returncode != 0:
            raise TritonEnvironmentError(f"no Triton environment was made: {step[2]} failed")


def find_environment(setting: Path | str | None = None) -> Path:
    """Returns the Triton environment's directory: the setting, the variable, or the project's own.

    Raises:
        TritonEnvironmentError: No interpreter is found there.
    """
    chosen = str(setting) if setting else os.environ.get(ENVIRONMENT_VARIABLE, "")
    try:
        path = Path(chosen).expanduser() if chosen else default_environment()
    except RuntimeError:
        raise TritonEnvironmentError(f"{chosen}: there is no such user, or none at home") from None
    if not (path / "bin" / "python").exists():
        raise TritonEnvironmentError(
            f"no Triton environment at {path}: make one with `{_how()}`, "
            f"or set {ENVIRONMENT_VARIABLE} to an environment with nvidia-pytriton in it"
        )
    return path.absolute()


def _how() -> str:
    """Returns the command that makes the environment."""
    return "make setup" if checkout() else "tiercel setup-triton"


def prepare_environment(
    setting: Path | str | None = None, build_directory: Path | None = None
) -> TritonEnvironment:
    """Checks the environment and builds its backends directory; does nothing the second time.

    Args:
        setting: Directory of the environment; None: `TIERCEL_TRITON_ENV`, else `.venv-triton`.
        build_directory: Where the backends are laid out; None: `triton` in the work folder.

    Raises:
        TritonEnvironmentError: Environment, Triton, its stub or a shared libpython is missing.
    """
    environment = find_environment(setting)
    facts = _probe(environment)
    site_packages = Path(facts["purelib"])
    triton = site_packages / "pytriton" / "tritonserver"
    binary = triton / "bin" / "tritonserver"
    if not binary.is_file():
        raise TritonEnvironmentError(
            f"the Triton environment {environment} has no tritonserver: complete it with "
            f"`{_how()}`, or install nvidia-pytriton into it"
        )
    stub = triton / "python_backend_stubs" / facts["minor"] / "triton_python_backend_stub"
    if not stub.is_file():
        raise TritonEnvironmentError(f"this Triton has no stub for Python {facts['minor']}")
    libpython_directory = _find_libpython(facts)
    build = build_directory or work_folder("triton")
    return TritonEnvironment(
        binary=binary,
        bin_directory=environment / "bin",
        backends_directory=_lay_out_backends(triton, stub, build),
        cache_directory=triton / "caches",
        library_path=f"{site_packages / 'nvidia_pytriton.libs'}:{libpython_directory}",
        python_version=facts["minor"],
    )


def _probe(environment: Path) -> dict[str, str]:
    """Asks the environment's interpreter where its libraries are."""
    try:
        done = subprocess.run(
            [environment / "bin" / "python", "-I", "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise TritonEnvironmentError(
            f"the interpreter of the Triton environment {environment} does not run: {error}"
        ) from error
    facts: dict[str, str] = json.loads(done.stdout)
    return facts


def _find_libpython(facts: dict[str, str]) -> Path:
    """Returns the directory of the shared libpython that the stub must load.

    The interpreter's own LIBDIR comes first: a stub that loads a libpython of another build may
    not find the standard library of this one.
    """
    name = f"libpython{facts['minor']}.so.1.0"
    own = Path(facts["libdir"])
    candidates = [own, own / facts["multiarch"]] if facts["libdir"] else []
    for directory in candidates:
        if (directory / name).is_file():
            return directory
    for template in _SYSTEM_LIBRARY_DIRECTORIES:
        directory = Path(template.format(multiarch=facts["multiarch"]))
        if (directory / name).is_file():
            _log.warning("using %s of the system: the interpreter has none of its own", name)
            return directory
    raise TritonEnvironmentError(
        f"the shared library {name} is missing: install it with "
        f"`apt-get install libpython{facts['minor']}`"
    )


def _lay_out_backends(triton: Path, stub: Path, build: Path) -> Path:
    """Copies the python backend and the right stub into one directory and returns its parent.

    The directory's name carries a fingerprint of its sources, and it appears by one rename, so
    that several processes may prepare it at once and an upgrade never meets old files.
    """
    sources = [*sorted((triton / "backends" / "python").glob("*.so")), stub]
    sources += sorted((triton / "backends" / "python").glob("*.py"))
    described = [
        (str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in sources
    ]
    fingerprint = hashlib.sha256(repr(described).encode()).hexdigest()[:12]
    target = build / f"backends-{fingerprint}"
    if target.is_dir():
        return target
    build.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix="backends-draft-", dir=build))
    (draft / "python").mkdir()
    for file in sources:
        shutil.copy2(file, draft / "python" / file.name)
    draft.chmod(0o755)
    try:
        draft.rename(target)
    except OSError:
        # Another process was faster; its copy is the same.
        shutil.rmtree(draft, ignore_errors=True)
        if not target.is_dir():
            raise
    return target
