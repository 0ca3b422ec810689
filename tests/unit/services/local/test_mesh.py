"""Children of an embedded mesh: started tied to this process, restarted, ended for sure."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import tomllib

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.local import probes, supervisor
from services.local.backends import redis_command, trace_endpoint
from services.local.child import Child, ChildError, ChildSpec
from services.local.cores import plan_cores
from services.local.errors import CommandError, InputError
from services.local.manifest import Manifest, find_mesh, run_folder, running_names
from services.local.ports import choose_ports
from services.local.settings_file import EndpointEntry, TaskEntry, settings_text
from services.local.supervisor import Supervisor

SLEEPER = "import sys, time, pathlib; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
STUBBORN = (
    "import signal, subprocess, sys, time, pathlib;"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "pathlib.Path(sys.argv[1]).write_text(str(child.pid)); time.sleep(600)"
)


def spec_of(
    tmp_path: pathlib.Path, code: str = SLEEPER, *, name: str = "one", stage: int = 0
) -> ChildSpec:
    """A child that runs a line of Python and is ready once its file is there."""
    ready = tmp_path / f"{name}.ready"
    return ChildSpec(
        name=name,
        command=(sys.executable, "-c", code, str(ready)),
        is_ready=lambda: probes.file_exists(ready),
        log_path=tmp_path / f"{name}.log",
        stage=stage,
        ready_timeout_s=20.0,
        stop_timeout_s=0.3,
    )


async def test_a_child_starts_ready_and_stops(tmp_path: pathlib.Path) -> None:
    """After the stop no process is left."""
    child = Child(spec_of(tmp_path))
    await child.start()
    pid = child.pid
    assert pid is not None
    assert psutil.pid_exists(pid)
    await child.stop()
    assert not psutil.pid_exists(pid)
    await child.stop()


async def test_a_stubborn_child_and_its_own_children_are_killed(tmp_path: pathlib.Path) -> None:
    """SIGTERM is ignored, and a grandchild is there: both go."""
    child = Child(spec_of(tmp_path, STUBBORN))
    await child.start()
    grandchild = int((tmp_path / "one.ready").read_text())
    await child.stop()
    for _ in range(100):
        if not psutil.pid_exists(grandchild):
            break
        await asyncio.sleep(0.02)
    assert not psutil.pid_exists(grandchild)


async def test_a_child_that_dies_while_starting_says_why(tmp_path: pathlib.Path) -> None:
    """The error carries the child's own last line."""
    child = Child(spec_of(tmp_path, "raise SystemExit('port 7410 is taken')"))
    with pytest.raises(ChildError, match="port 7410 is taken"):
        await child.start()


async def test_a_child_that_is_never_ready_is_ended(tmp_path: pathlib.Path) -> None:
    """The time to ready is bounded and nothing is left."""
    spec = spec_of(tmp_path, "import time; time.sleep(600)")
    spec = ChildSpec(**{f: getattr(spec, f) for f in spec.__slots__} | {"ready_timeout_s": 0.3})
    child = Child(spec)
    with pytest.raises(ChildError, match="not ready after"):
        await child.start()
    assert not child.is_running


async def test_the_supervisor_ends_a_child_that_answers_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that runs but is not alive is killed and started again."""
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(supervisor, "ALIVE_INTERVAL_S", 0.01)
    answers = [True] * 3 + [False] * supervisor.DEAD_AFTER_MISSES
    asked: list[bool] = []

    async def is_alive() -> bool:
        asked.append(answers[len(asked)] if len(asked) < len(answers) else True)
        return asked[-1]

    said: list[str] = []
    keeper = Supervisor(say=said.append)
    await keeper.start([dataclasses.replace(spec_of(tmp_path), is_alive=is_alive)])
    first = keeper.children["one"].pid
    for _ in range(500):
        if "one is back" in said:
            break
        await asyncio.sleep(0.02)
    assert said == [
        "one runs but answers nothing; ending it",
        "one ended (signal 9); starting it again in 0.01 s",
        "one is back",
    ]
    assert keeper.children["one"].pid != first
    await keeper.stop()


async def test_the_supervisor_starts_an_ended_child_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed child comes back, with a message each time."""
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 0.01)
    said: list[str] = []
    keeper = Supervisor(say=said.append)
    await keeper.start([spec_of(tmp_path)])
    first = keeper.children["one"].pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    for _ in range(500):
        if "one is back" in said:
            break
        await asyncio.sleep(0.02)
    assert said[0].startswith("one ended (signal 9)")
    assert said[-1] == "one is back"
    assert keeper.children["one"].pid != first
    last = keeper.children["one"].pid
    await keeper.stop()
    assert last is not None
    assert not psutil.pid_exists(last)


async def test_a_child_with_wrong_settings_stays_down(tmp_path: pathlib.Path) -> None:
    """Exit code 2 is not retried."""
    said: list[str] = []
    keeper = Supervisor(say=said.append)
    code = SLEEPER.replace("time.sleep(600)", "time.sleep(0.2); print('bad key'); sys.exit(2)")
    await keeper.start([spec_of(tmp_path, code)])
    for _ in range(200):
        if said:
            break
        await asyncio.sleep(0.02)
    assert said == ["one refuses its settings and stays down: bad key"]
    await keeper.stop()


async def test_children_stop_in_the_reverse_order_of_their_stages(tmp_path: pathlib.Path) -> None:
    """What was started last goes first."""
    keeper = Supervisor(say=lambda text: None)
    specs = [spec_of(tmp_path, name=f"c{i}", stage=i) for i in range(3)]
    await keeper.start(specs)
    stopped: list[str] = []
    for child in keeper.children.values():
        original = child.stop

        async def record(*, graceful: bool = True, c: Child = child, o: object = original) -> None:
            stopped.append(c.spec.name)
            await o(graceful=graceful)  # type: ignore[operator]

        child.stop = record  # type: ignore[method-assign]
    await keeper.stop()
    assert stopped == ["c2", "c1", "c0"]


def test_children_die_with_a_supervisor_that_is_killed(tmp_path: pathlib.Path) -> None:
    """Even SIGKILL of the supervisor leaves nothing behind."""
    code = f"""
import asyncio, pathlib, sys
from services.local import probes
from services.local.child import Child, ChildSpec
ready = pathlib.Path({str(tmp_path)!r}) / "ready"
async def main():
    child = Child(ChildSpec(name="c", command=(sys.executable, "-c", {SLEEPER!r}, str(ready)),
        is_ready=lambda: probes.file_exists(ready), log_path=ready.with_suffix(".log"), stage=0))
    await child.start()
    print(child.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    for _ in range(200):
        if not psutil.pid_exists(pid):
            break
        time.sleep(0.02)
    assert not psutil.pid_exists(pid)


def test_a_taken_port_is_replaced_by_a_free_one() -> None:
    """Defaults are kept where they are free; nothing is given twice."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen(1)
        taken = holder.getsockname()[1]
        ports = choose_ports({"a": taken, "b": taken, "c": 0})
    assert taken not in ports.values()
    assert len(set(ports.values())) == 3


@pytest.mark.parametrize(
    ("cores", "raised", "service", "device", "nice"),
    [
        ((0, 1), True, (0,), (1,), 0),
        ((2, 3, 5), False, (2, 3), (5,), 0),
        ((4,), True, (4,), (4,), 0),
        ((4,), False, (4,), (4,), 5),
    ],
)
def test_the_last_core_is_the_device(
    cores: tuple[int, ...],
    raised: bool,
    service: tuple[int, ...],
    device: tuple[int, ...],
    nice: int,
) -> None:
    """With one core all share it, and without a raised priority the tiers yield."""
    layout = plan_cores(cores, can_raise_priority=raised)
    assert (layout.service_cores, layout.device_cores, layout.tier_nice) == (service, device, nice)


NAMES = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())


@given(NAMES, NAMES, st.floats(0.001, 100))
def test_the_settings_file_is_toml_whatever_the_names(
    name: str, model: str, deadline_s: float
) -> None:
    """Names and paths are quoted."""
    text = settings_text(
        name=name,
        tiers=("small",),
        profile=pathlib.Path("a b.toml"),
        quality=pathlib.Path('c"d.toml'),
        addresses={"redis": "127.0.0.1:6379"},
        tasks=[TaskEntry(name, deadline_s, 16, 8.0)],
        endpoints=[EndpointEntry(name, "127.0.0.1:1", "d", ("small",), {"small": model}, "")],
        sections={"router_inference": {"policy": "price", "safety_net": True}},
    )
    parsed = tomllib.loads(text)
    assert parsed["mesh"]["endpoints"][0]["models"] == {"small": model}
    assert parsed["mesh"]["tasks"][0]["default_deadline_s"] == deadline_s
    assert parsed["mesh"]["redis_url"] == "redis://127.0.0.1:6379/0"
    assert parsed["router_inference"]["safety_net"] is True


def manifest_of(pid: int, started_unix_s: float) -> Manifest:
    """A manifest of a mesh with one router."""
    return Manifest(
        "m", pid, started_unix_s, "reference", "c.toml", ("127.0.0.1:7410",), {}, {}, {}, {}
    )


def test_a_running_mesh_is_found_by_name(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest of a living supervisor is read back, that of an ended one is not."""
    monkeypatch.setenv("TIERCEL_RUN_ROOT", str(tmp_path))
    manifest_of(os.getpid(), time.time()).write(run_folder("m"))
    assert find_mesh("m").routers == ("127.0.0.1:7410",)
    assert running_names() == ["m"]
    # A process id that was given to another process since then does not count.
    manifest_of(os.getpid(), 1000.0).write(run_folder("m"))
    with pytest.raises(CommandError, match="not running any more"):
        find_mesh("m")
    (run_folder("m") / "mesh.json").write_text("{")
    with pytest.raises(CommandError, match="cannot be read"):
        find_mesh("m")
    with pytest.raises(CommandError, match="tiercel up"):
        find_mesh("n")
    with pytest.raises(InputError, match="mesh name"):
        find_mesh("../etc")


async def test_redis_and_http_probes_say_no_to_silence() -> None:
    """A port where nobody listens is not ready."""
    assert not await probes.redis_answers("127.0.0.1:1")
    assert not await probes.http_ok("127.0.0.1:1", "/")


async def test_the_embedded_redis_starts_and_answers(tmp_path: pathlib.Path) -> None:
    """The real server, on a free port, ready by PING."""
    port = choose_ports({"redis": 0})["redis"]
    spec = ChildSpec(
        name="redis",
        command=redis_command(port, tmp_path),
        is_ready=lambda: probes.redis_answers(f"127.0.0.1:{port}"),
        log_path=tmp_path / "redis.log",
        stage=0,
    )
    child = Child(spec)
    await child.start()
    await child.stop()
    assert not child.is_running


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, "http://c:4318/v1/traces"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:99/",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            },
            "http://c:99/v1/traces",
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:99/x",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            },
            "http://c:99/x",
        ),
    ],
)
def test_triton_gets_the_standard_trace_address(variables: dict[str, str], endpoint: str) -> None:
    """Triton speaks OTLP over HTTP whatever the services speak."""
    assert trace_endpoint(variables) == endpoint
