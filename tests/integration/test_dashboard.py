"""Every panel of the Grafana dashboard, asked of a real Prometheus that scrapes every metric."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.unit.deploy.manifests import DEPLOY, load_yaml, tool

_LIMIT_S = 60.0
_VALUES = {
    "task": ["sort", "chat"],
    "tier": ["small", "large"],
    "outcome": ["on_time", "late", "refused", "failed", "cancelled"],
    "health": ["ready"],
    "range": ["all"],
    "stay": ["new", "kept", "closed"],
    "code": ["OK", "UNAVAILABLE"],
}
"""Values of the labels that queries match; others have one."""
_BUCKETS = ("0.1", "1.0", "+Inf")


def _page(rows: list[dict[str, Any]], step: int) -> str:
    """What services serve: every registered metric; counts have grown by `step`, gauges are 1."""
    lines = []
    for row in rows:
        name, kind = row["name"], row["type"]
        family = name.removesuffix("_total") if kind == "counter" else name
        lines.append(f"# TYPE {family if kind != 'counter' else name} {kind}")
        values = [_VALUES.get(label, ["x"]) for label in row["labels"]]
        for each in itertools.product(*values):
            labels = [f'{k}="{v}"' for k, v in zip(row["labels"], each, strict=True)]
            if kind == "histogram":
                for rank, bound in enumerate(_BUCKETS, start=1):
                    bucket = ",".join([*labels, f'le="{bound}"'])
                    lines.append(f"{name}_bucket{{{bucket}}} {rank * step}")
                told = [(f"{name}_count", len(_BUCKETS) * step), (f"{name}_sum", step)]
            else:
                told = [(name, step if kind == "counter" else 1)]
            lines += [f"{sample}{{{','.join(labels)}}} {value}" for sample, value in told]
    return "\n".join(lines) + "\n"


@pytest.fixture
def metrics() -> Iterator[int]:
    """A port at which every scrape finds higher counts."""
    rows = load_yaml(DEPLOY / "telemetry" / "registry.yaml")["metrics"]
    steps = itertools.count(1)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = _page(rows, next(steps)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # Prometheus that ends reads no further
                self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def prometheus(tmp_path: Path, metrics: int, free_port: Callable[[], int]) -> Iterator[str]:
    """The address of a Prometheus that has scraped the metrics a few times."""
    binary = tool("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed (Debian package): panels were parsed only")
    target = {"static_configs": [{"targets": [f"127.0.0.1:{metrics}"]}]}
    document = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "router-inference", **target}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(document))
    address = f"127.0.0.1:{free_port()}"
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        [
            binary, f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={address}",
        ],
        stdout=log, stderr=log,
    )  # fmt: skip
    try:
        _await_samples(address, process)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=_LIMIT_S)
        log.close()


def _await_samples(address: str, process: subprocess.Popen[bytes]) -> None:
    """Waits until a counter has been scraped several times."""
    end_s = time.monotonic() + _LIMIT_S
    while time.monotonic() < end_s and process.poll() is None:
        try:
            found = _ask(address, "count_over_time(tiercel_experience_written_total[1m])")
        except httpx.HTTPError:
            found = []
        if found and float(found[0]["value"][1]) >= 4:
            return
        time.sleep(0.2)
    raise AssertionError(f"Prometheus has no samples (exit status {process.poll()})")


def _ask(address: str, query: str) -> list[dict[str, Any]]:
    with httpx.Client(trust_env=False, timeout=10.0) as client:
        reply = client.get(f"http://{address}/api/v1/query", params={"query": query})
    reply.raise_for_status()  # "unavailable" while it starts
    body = reply.json()
    assert body["status"] == "success", (query, body)
    result: list[dict[str, Any]] = body["data"]["result"]
    return result


def test_every_panel_shows_what_was_scraped(prometheus: str) -> None:
    """No query is refused, none finds nothing, and none divides by nothing."""
    (path,) = (DEPLOY / "grafana" / "dashboards").glob("*.json")
    asked = 0
    for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "1m").replace("$task", "sort|chat")
            found = _ask(prometheus, query)
            assert found, (panel["title"], query)
            for series in found:
                assert series["value"][1] not in ("NaN", "+Inf"), (panel["title"], query, series)
            asked += 1
    assert asked > 30
    assert _ask(prometheus, "tiercel_no_such_metric") == []
