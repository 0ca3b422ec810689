"""What Compose, Kubernetes and the pages say, done with the built wheels' real processes.

The wheels are built from exactly the paths that the Dockerfile's stage `wheel` copies and go into
an environment of their own. Triton and the services are started with the commands of
deploy/compose.yaml from a folder laid out like the image's, with the settings file of
deploy/config; only addresses and the data folder are overridden, by environment variables, to keep
to loopback and free ports.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import RedisServer
from tests.fakes.ports import free_port
from tests.unit.deploy.manifests import (
    ALL_SERVICES,
    CONFIG_IN_IMAGE,
    DEPLOY,
    DOORS,
    ROOT,
    SERVICES,
    Stage,
    compose,
    config_path,
    dockerfile_stages,
    pod,
    rendered,
    section,
)
from tests.waiting import LIMIT_S, until_sync

pytestmark = [pytest.mark.triton, pytest.mark.timeout(300)]

_START_TIMEOUT_S = 120.0
_EXAMPLE_PORT = "127.0.0.1:7410"
_DEADLINES = re.compile(r'deadline(_s=|": ")0\.5')


@dataclass
class Process:
    """A started process."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    ports: dict[str, int]

    def output(self) -> str:
        """Returns what it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")


@dataclass
class Deployment:
    """The image's file system and the processes that run from it."""

    root: Path
    python: Path
    processes: dict[str, Process] = field(default_factory=dict)

    def start(
        self, name: str, command: list[str], ports: dict[str, int], environment: dict[str, str]
    ) -> Process:
        """Starts a command in the image's working directory."""
        log = self.root / f"{name}.log"
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        with log.open("wb") as sink:
            popen = subprocess.Popen(
                [str(self.python), *command[1:]],
                cwd=self.root,
                env={**kept, "PYTHONDONTWRITEBYTECODE": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        self.processes[name] = Process(name, popen, log, ports)
        return self.processes[name]

    def stop(self) -> None:
        """Ends what still runs, in reverse order of the start."""
        for process in reversed(self.processes.values()):
            if process.popen.poll() is None:
                process.popen.send_signal(signal.SIGTERM)
        for process in reversed(self.processes.values()):
            try:
                process.popen.wait(timeout=40.0)
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait(timeout=5.0)


def _wait_until(process: Process, is_done: Callable[[], bool], what: str) -> None:
    until_sync(lambda: is_done() or process.popen.poll() is not None, what, _START_TIMEOUT_S)
    assert process.popen.poll() is None, f"{process.name} ended:\n{process.output()}"


def _http_ok(number: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{number}{path}", timeout=LIMIT_S) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _health(number: int) -> str:
    """Asks as Kubernetes' gRPC probe does: `Check` without a service name."""
    with grpc.insecure_channel(f"127.0.0.1:{number}") as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=LIMIT_S
            )
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def _copied(stage: Stage) -> list[str]:
    """Returns the repository paths that a stage copies from the build context."""
    paths = []
    for arguments in stage.values("COPY"):
        if not arguments.startswith("--from="):
            paths += arguments.split()[:-1]
    return paths


def _copy_all(paths: list[str], target: Path) -> None:
    for name in paths:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target / name, ignore=ignored)
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Both wheels, built from what the Dockerfile gives its build stage and nothing else."""
    source = tmp_path_factory.mktemp("source")
    _copy_all(_copied(dockerfile_stages()["wheel"]), source)
    out = tmp_path_factory.mktemp("wheels")
    # This environment's build tools are used, whose setuptools is newer than an isolated build's.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    command += ["--skip-dependency-check", "--outdir", str(out)]
    for project in (source / "services" / "client", source):
        done = subprocess.run(
            [*command, str(project)], capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    built = sorted(out.glob("*.whl"))
    assert len(built) == 2
    return built


@pytest.fixture(scope="module")
def installed(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheels; dependencies come from this one's."""
    folder = tmp_path_factory.mktemp("venv")
    quiet: dict[str, Any] = {"check": True, "timeout": 120, "stdout": subprocess.DEVNULL}
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], **quiet)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", *map(str, wheels)], **quiet)
    # A line in a .pth file comes after the environment's own packages and runs no .pth of its own,
    # so the editable checkout stays out of sight.
    own = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


@pytest.fixture(scope="module")
def deployment(
    installed: Path,
    tmp_path_factory: pytest.TempPathFactory,
    _session_redis: RedisServer,
) -> Iterator[Deployment]:
    """Triton and the three services, started by Compose's commands and ready."""
    root = tmp_path_factory.mktemp("opt")
    stages = dockerfile_stages()
    _copy_all(_copied(stages["runtime"]), root)
    (root / "deploy").mkdir()
    (root / "deploy" / "triton").symlink_to(DEPLOY / "triton")
    settings = root / CONFIG_IN_IMAGE
    # By links, as Kubernetes mounts a ConfigMap.
    (settings.parent / "..1").mkdir(parents=True)
    shutil.copy2(config_path("reference"), settings.parent / "..1" / settings.name)
    (settings.parent / "..data").symlink_to("..1")
    settings.symlink_to(f"..data/{settings.name}")
    if _session_redis.process is None:
        _session_redis.start()
    _session_redis.flush()

    mesh = Deployment(root, installed)
    try:
        triton = _start_triton(mesh)
        _wait_until(triton, lambda: _http_ok(triton.ports["http"], "/v2/health/ready"), "not ready")
        _start_services(mesh, _session_redis.url)
        for service in SERVICES:
            process = mesh.processes[service]
            number = process.ports["grpc"]
            _wait_until(process, lambda n=number: _health(n) == "SERVING", "not SERVING")  # type: ignore[misc]
        for door in DOORS:
            process = mesh.processes[door]
            number = process.ports["http"]
            _wait_until(process, lambda n=number: _http_ok(n, "/health"), "not well")  # type: ignore[misc]
        yield mesh
    finally:
        mesh.stop()


def _start_triton(mesh: Deployment) -> Process:
    """Starts Triton with Compose's flags, other host and ports."""
    ports = {name: free_port() for name in ("grpc", "http", "metrics")}
    command = [*dockerfile_stages()["image-triton"].command("ENTRYPOINT")]
    for flag in compose()["services"]["triton"]["command"]:
        name, _, value = flag.removeprefix("--").partition("=")
        if name == "tls-folder":
            continue  # here everything is on loopback; test_triton_server.py runs it by TLS
        if name == "host":
            value = "127.0.0.1"
        elif name.endswith("-port"):
            value = str(ports[name.removesuffix("-port")])
        command.append(f"--{name}={value}")
    environment = {"TIERCEL_TRITON_ENV": str(ROOT / ".venv-triton")}
    return mesh.start("triton", command, ports, environment)


def _start_services(mesh: Deployment, redis_url: str) -> None:
    """Starts the services with Compose's commands; addresses are overridden by the environment."""
    ports = {name: {"grpc": free_port(), "metrics": free_port()} for name in SERVICES}
    ports |= {name: {"http": free_port(), "metrics": free_port()} for name in DOORS}
    triton = mesh.processes["triton"].ports
    endpoint = (
        f'{{name = "triton-0", address = "127.0.0.1:{triton["grpc"]}", device = "cpu0", '
        f'tiers = ["small", "medium", "large"], metrics_address = "127.0.0.1:{triton["metrics"]}"}}'
    )
    shared = {
        "TIERCEL_MESH__REDIS_URL": redis_url,
        "TIERCEL_MESH__LOAD_MONITOR_ADDRESS": f"127.0.0.1:{ports['load-monitor']['grpc']}",
        "TIERCEL_MESH__TRAINER_ADDRESS": f"127.0.0.1:{ports['trainer']['grpc']}",
        "TIERCEL_MESH__ENDPOINTS": f"[{endpoint}]",
        "TIERCEL_TRAINER__DATA_DIR": str(mesh.root / "data"),
        "TIERCEL_TRAINER__AUTOSTART_ONLINE": "false",
    }
    entries = compose()["services"]
    for service, own in ALL_SERVICES.items():
        prefix = f"TIERCEL_{own.upper()}__"
        number = ports[service]["http" if service in DOORS else "grpc"]
        environment = {
            **shared,
            f"{prefix}LISTEN": f"127.0.0.1:{number}",
            f"{prefix}METRICS_LISTEN": f"127.0.0.1:{ports[service]['metrics']}",
            f"{prefix}LAME_DUCK_S": "1.0",
        }
        if service in DOORS:
            router = f"127.0.0.1:{ports['router-inference']['grpc']}"
            environment[f"{prefix}ROUTERS"] = f'["{router}"]'
        command = [
            *dockerfile_stages()[f"image-{service}"].command("ENTRYPOINT"),
            *entries[service]["command"],
        ]
        mesh.start(service, command, ports[service], environment)


def test_wheels_hold_stubs_and_packages(installed: Path) -> None:
    """The installed wheels, not the checkout, provide every package, stubs included."""
    code = (
        "import router, trainer, services, tiercel.trainer.v1.trainer_service_pb2_grpc as stub;"
        "print(router.__file__, trainer.__file__, services.__file__, stub.__file__, sep='\\n')"
    )
    done = subprocess.run(
        [str(installed), "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True,
        cwd=installed.parent,
    )  # fmt: skip
    prefix = str(installed.parent.parent)
    assert all(line.startswith(prefix) for line in done.stdout.split())


@pytest.mark.parametrize("service", SERVICES)
def test_probes_of_the_manifests_succeed(deployment: Deployment, service: str) -> None:
    """Each Kubernetes probe and the image's health check find the process well."""
    container = pod(rendered("overlays/insecure-open-to-network"), service)["containers"][0]
    names = {entry["containerPort"]: entry["name"] for entry in container["ports"]}
    process = deployment.processes[service]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[kind]
        if "grpc" in probe:
            assert _health(process.ports[names[probe["grpc"]["port"]]]) == "SERVING"
        else:
            number = process.ports[probe["tcpSocket"]["port"]]
            with socket.create_connection(("127.0.0.1", number), LIMIT_S):
                pass
    check = dockerfile_stages()[f"image-{service}"].command("HEALTHCHECK")
    address = f"127.0.0.1:{process.ports['grpc']}"
    done = subprocess.run(
        [str(deployment.python), *check[1:-1], address],
        cwd=deployment.root, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{address} SERVING\n")


@pytest.mark.parametrize("service", DOORS)
def test_probes_of_doors_succeed(deployment: Deployment, service: str) -> None:
    """A door answers on the paths that its manifest probes, and its image's check finds it well."""
    container = pod(rendered("overlays/insecure-open-to-network"), service)["containers"][0]
    process = deployment.processes[service]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[kind]["httpGet"]
        assert _http_ok(process.ports[probe["port"]], probe["path"])
    _, *check = dockerfile_stages()[f"image-{service}"].command("HEALTHCHECK")
    address = f"127.0.0.1:{process.ports['http']}"
    check[2] = address
    done = subprocess.run(
        [str(deployment.python), *check],
        cwd=deployment.root, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{address} 200\n")


def test_readme_example_for_openai_clients_works(deployment: Deployment) -> None:
    """The `curl` line gets an answer from the door; a generous deadline."""
    number = deployment.processes["openai-door"].ports["http"]
    example = _block("README.md", "/v1/chat/completions").replace(
        "127.0.0.1:7440", f"127.0.0.1:{number}"
    )
    example = example.replace('"500"', '"20000"')
    done = subprocess.run(
        ["bash", "-c", example.partition("up --openai\n")[2]],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["content"] == "acdefgh"
    assert answer["tiercel"]["on_time"] is True


def test_probes_of_triton_succeed(deployment: Deployment) -> None:
    """Triton answers on the paths and ports that its manifests probe, from outside or inside."""
    ports = deployment.processes["triton"].ports
    asked: set[str] = set()
    for overlay in ("base", "overlays/insecure-open-to-network"):
        container = pod(rendered(overlay), "triton")["containers"][0]
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[kind]
            asked |= probe.keys() & {"exec", "httpGet"}
            if "exec" in probe:
                assert _runs_well(probe["exec"]["command"][-1], ports["http"])
                assert not _runs_well(probe["exec"]["command"][-1], free_port())
            else:
                assert _http_ok(ports[probe["httpGet"]["port"]], probe["httpGet"]["path"])
    assert asked == {"exec", "httpGet"}
    assert _http_ok(ports["metrics"], "/metrics")
    check = dockerfile_stages()["image-triton"].command("HEALTHCHECK")
    assert _runs_well(check[-1], ports["http"])


def _runs_well(code: str, number: int) -> bool:
    """Says whether a probe of Triton's HTTP port is content with another port."""
    command = [sys.executable, "-c", code.replace(":8000", f":{number}")]
    return subprocess.run(command, timeout=60, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("service", ALL_SERVICES)
def test_scrape_has_exactly_the_registered_metrics(deployment: Deployment, service: str) -> None:
    """The metrics page of the running process and the registry name the same metrics."""
    _generate(deployment)  # so that whatever appears with traffic has appeared
    registry = yaml.safe_load((DEPLOY / "telemetry" / "registry.yaml").read_text(encoding="utf-8"))
    registered = {row["name"] for row in registry["metrics"] if service in row["services"]}
    # The parent of several workers adds these; here is one process.
    registered -= {"tiercel_workers", "tiercel_worker_restarts_total"}
    number = deployment.processes[service].ports["metrics"]
    with urllib.request.urlopen(f"http://127.0.0.1:{number}/metrics", timeout=LIMIT_S) as reply:
        text = reply.read().decode()
    scraped = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(text)
        if family.name.startswith("tiercel_")
    }
    assert scraped == registered


@pytest.mark.parametrize("service", ["router-inference", "load-monitor", "openai-door"])
def test_request_path_loads_no_torch(deployment: Deployment, service: str) -> None:
    """The light services map no library of torch, and the router alone one of a compiler."""
    pid = deployment.processes[service].popen.pid
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    assert "libpython" in maps or "/python" in maps
    assert "torch" not in maps
    assert ("llvmlite" in maps) == (service == "router-inference")


def _generate(deployment: Deployment) -> subprocess.CompletedProcess[str]:
    """Runs the gRPC example of the doors against the running router; a generous deadline."""
    example = _block("docs/doors.md", "buf curl")
    address = f"127.0.0.1:{deployment.processes['router-inference'].ports['grpc']}"
    example = _DEADLINES.sub(r"deadline\g<1>20", example.replace(_EXAMPLE_PORT, address))
    buf = Path(sys.executable).with_name("buf")
    return subprocess.run(
        ["bash", "-c", example.replace("buf curl", f"{buf} curl", 1)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def _block(page: str, start: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    found: str = next(block for block in blocks if start in block)
    return found


def test_the_example_for_any_grpc_client_works(deployment: Deployment) -> None:
    """`buf curl` with server reflection gets an answer, without our stubs."""
    done = _generate(deployment)
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["completion"]["tier"] in {"small", "medium", "large"}
    assert answer["completion"]["onTime"] is True
    assert answer["text"]


def test_readme_example_for_python_works(deployment: Deployment) -> None:
    """The Python example runs as printed, address and deadline aside."""
    address = f"127.0.0.1:{deployment.processes['router-inference'].ports['grpc']}"
    code = _block("README.md", "from tiercel import Client").replace(_EXAMPLE_PORT, address)
    code = _DEADLINES.sub(r"deadline\g<1>20", code)
    done = subprocess.run(
        [str(deployment.python), "-c", code],
        cwd=deployment.root, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0].split()
    assert first[1] in {"small", "medium", "large"}
    assert first[2] == "True"
    assert "Chunk(" in done.stdout


@pytest.mark.parametrize("service", ["router-inference", "trainer", "load-monitor"])
def test_stop_signal_drains_within_the_grace(deployment: Deployment, service: str) -> None:
    """SIGTERM makes health NOT_SERVING first, then ends the process with 0 inside the grace."""
    process = deployment.processes[service]
    grace_s = pod(rendered("base"), service)["terminationGracePeriodSeconds"]
    assert grace_s > section("reference", service)["lame_duck_s"]
    said = []
    with grpc.insecure_channel(f"127.0.0.1:{process.ports['grpc']}") as channel:
        # A watch, as it misses no change: the process soon ends.
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=_START_TIMEOUT_S
        )
        for reply in watch:
            said.append(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))
            if len(said) == 2:
                break
            process.popen.send_signal(signal.SIGTERM)
    assert said == ["SERVING", "NOT_SERVING"]
    assert process.popen.wait(timeout=grace_s) == 0, process.output()
    assert "Traceback" not in process.output()


def test_a_door_drains_within_the_grace(deployment: Deployment) -> None:
    """SIGTERM ends its health, then the process with 0; its router may be gone already."""
    process = deployment.processes["openai-door"]
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(timeout=30.0) == 0, process.output()
    assert "Traceback" not in process.output()
