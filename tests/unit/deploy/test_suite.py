"""The suite itself: unit tests stand where their modules do, waits for real time are listed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from hypothesis.internal.conjecture.providers import HypothesisProvider

from tests.unit.deploy.manifests import ROOT

TESTS = ROOT / "tests"
BIG_LINES = 150

SUBJECTS = {
    "router/test_caution.py": "how admission learns caution, a part of router/safety.py",
    "services/client/tiercel/test_close.py": "both clients, closed or forked",
    "services/client/tiercel/test_connections.py": "both clients, whatever lies between",
    "services/test_bounds_of_settings.py": "every section of the settings file, one rule each",
    "trainer/simulation/test_kv_room.py": "simulator and paced tiers keep the same limit",
    "trainer/traces/test_span.py": "stamps years away from the others, by every reader",
}
"""Unit test files whose subject is several modules, each with the subject."""

COVERED = {
    "services/router_inference/records/metrics.py": "unit/deploy/test_telemetry.py",
    "services/router_inference/records/convert.py": (
        "unit/services/router_inference/records/test_experience.py"
    ),
    "services/common/openai/connection.py": "unit/services/common/openai/test_client.py",
    "services/common/openai/exchanges.py": "unit/services/common/openai/test_client.py",
    "services/common/state/scripts.py": "integration/test_policy_store.py",
    "services/load_monitor/servicer.py": "integration/test_state_exchange.py",
    "router/types.py": "unit/services/router_inference/doors/test_validation.py",
    "services/bench/bench.py": "unit/services/cli/test_bench.py",
    "services/bench/budgets.py": "unit/services/bench/test_readings.py",
    "services/bench/hop.py": "unit/services/cli/test_bench.py",
    "services/bench/peers.py": "unit/services/cli/test_bench.py",
    "services/bench/state.py": "unit/services/cli/test_bench.py",
    "services/common/interceptors.py": "integration/test_grpc_server.py",
    "services/common/lifecycle.py": "integration/test_lifecycle.py",
    "services/load_monitor/model.py": "integration/test_state_exchange.py",
    "services/common/server.py": "integration/test_grpc_server.py",
    "services/common/state/experience_stream.py": "integration/test_experience_stream.py",
    "services/common/state/policy_store.py": "integration/test_policy_store.py",
    "services/common/state/redis_connection.py": "integration/test_redis_connection.py",
    "services/common/state/shared_state.py": "integration/test_shared_state.py",
    "services/demo/run.py": "unit/services/cli/test_app.py",
    "services/load_monitor/app.py": "integration/test_load_monitor.py",
    "services/openai_door/app.py": "integration/test_openai_door.py",
    "services/openai_door/generation.py": "integration/test_openai_door.py",
    "services/openai_door/http_server.py": "integration/test_openai_door.py",
    "services/openai_door/pages.py": "integration/test_openai_door.py",
    "services/local/embedded.py": "unit/services/cli/test_app.py",
    "services/local/processes.py": "unit/services/local/test_embedded.py",
    "services/local/triton/server/process.py": "integration/test_triton_server.py",
    "services/router_inference/app.py": "integration/test_router_failures.py",
    "services/router_inference/doors/kserve/convert.py": (
        "unit/services/router_inference/doors/kserve/test_servicer.py"
    ),
    "services/router_inference/settings.py": "unit/services/test_bounds_of_settings.py",
    "services/router_inference/workers/parent.py": "integration/test_router_workers.py",
    "services/trainer/app.py": "integration/test_trainer.py",
    "services/trainer/convert_past.py": "unit/services/trainer/test_hindsight.py",
    "services/trainer/model.py": "unit/services/trainer/test_rollout.py",
    "services/trainer/servicer.py": "integration/test_trainer.py",
    "trainer/profiling/gpu/machine.py": "unit/trainer/profiling/gpu/test_main.py",
    "trainer/simulation/simulate.py": "unit/trainer/simulation/test_engine.py",
    "trainer/simulation/state.py": "unit/trainer/simulation/test_loop.py",
}
"""Modules of more than `BIG_LINES` lines without a test file of their own, and what covers each."""

UNTESTED = {
    "trainer/reference_tiers/train.py": "needs transformers, which Triton's environment alone has",
}
"""Big modules no test runs, each with the reason."""


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_packages_are_told_by_their_modules_alone() -> None:
    """Every `__init__.py` is empty, but for the public interface of the client."""
    full = [path for path in ROOT.glob("[!.]*/**/__init__.py") if path.stat().st_size]
    own = [path for path in full if "build" not in path.parts and "dist" not in path.parts]
    assert own == [ROOT / "services" / "client" / "tiercel" / "__init__.py"]


def test_deploy_holds_only_python_that_triton_runs() -> None:
    """What the mesh runs itself is in its packages."""
    assert [
        path
        for path in (ROOT / "deploy").rglob("*.py")
        if path.relative_to(ROOT / "deploy").parts[0] != "triton"
    ] == []


def test_every_unit_test_has_its_module() -> None:
    """`unit/a/test_b.py` is about `a/b.py` or the package `a/b`, `test_main.py` `__main__`."""
    lost = []
    for path in sorted((TESTS / "unit").rglob("test_*.py")):
        place = path.relative_to(TESTS / "unit")
        name = place.stem.removeprefix("test_")
        folder = ROOT / place.parent
        modules = [folder / f"{name}.py", folder / f"__{name}__.py", folder / name]
        # What lies in deploy/ itself is not Python.
        if place.parent != Path("deploy") and not any(module.exists() for module in modules):
            lost.append(str(place))
    assert lost == sorted(SUBJECTS)


def test_every_big_module_has_its_test() -> None:
    """A module of more than `BIG_LINES` lines has a test file of its name, or is listed."""
    missing = []
    for package in ("router", "trainer", "services"):
        for path in sorted((ROOT / package).rglob("*.py")):
            place = path.relative_to(ROOT)
            name = f"test_{place.stem.strip('_')}.py"
            is_big = len(path.read_text(encoding="utf-8").splitlines()) > BIG_LINES
            if (
                is_big
                and "_pb2" not in name
                and not (TESTS / "unit" / place.parent / name).exists()
            ):
                missing.append(str(place))
    assert set(missing) <= COVERED.keys() | UNTESTED.keys()


def test_covering_tests_reach_what_they_cover() -> None:
    """The test listed for a module imports it, by way of other modules or itself."""
    for module, test in COVERED.items():
        seen: set[Path] = set()
        waiting = [TESTS / test]
        while waiting:
            path = waiting.pop()
            if path not in seen:
                seen.add(path)
                waiting += _imported(path)
        assert ROOT / module in seen, f"{test} does not reach {module}"


@cache
def _imported(path: Path) -> list[Path]:
    """Returns the files of this repository that a file imports."""
    names: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    files = [ROOT / f"{name.replace('.', '/')}.py" for name in names]
    if "importlib.import_module" in path.read_text(encoding="utf-8"):
        files += path.parent.glob("*.py")  # the command loads its commands by name
    return [file for file in files if file.is_file()]


def test_draws_do_not_depend_on_what_is_imported() -> None:
    """A property test sees the same examples beside whatever other tests its process runs."""
    assert list(HypothesisProvider(None)._local_constants) == []


def test_waits_for_real_time_are_listed() -> None:
    """Whatever sleeps or reads a clock stands in tests/README.md with its reason."""
    text = (TESTS / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\S+)` \| `(\w+)` \|.*\S.* \|$", text, re.MULTILINE)
    found = {entry for path in sorted(TESTS.rglob("*.py")) for entry in _waits(path)}
    assert sorted(found) == sorted(listed)


def _waits(path: Path) -> Iterator[tuple[str, str]]:
    """Yields file and function of each call that sleeps or reads a clock of the machine."""
    place = path.relative_to(TESTS)
    nodes = list(ast.walk(_tree(path)))
    # A loop of virtual time jumps over its sleeps.
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    is_virtual = not names.isdisjoint({"run_virtual", "scenario", "VirtualTimeLoop", "LoopClock"})
    if place.parts[0] in ("bench", "faults", "soak"):
        return
    for outer in _tree(path).body:
        for node in ast.walk(outer):
            if not isinstance(node, ast.Call):
                continue
            call = ast.unparse(node)
            sleeps = re.match(r"(time|asyncio)\.sleep\((?!0\))", call) and not is_virtual
            if sleeps or re.match(r"time\.(time|monotonic|perf_counter)\(", call):
                yield str(place), getattr(outer, "name", "")
