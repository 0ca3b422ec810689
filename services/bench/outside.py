"""What others cost at the same place: `python -m services.bench.outside [--json FILE]`.

Not budgets, but marks to read ours by. nginx's `grpc_pass` is a plain hop in C: what streaming
eight tokens through costs without Python. LiteLLM's proxy does what ours does one layer up, for
HTTP: it chooses a deployment and passes the answer on. It runs in an environment of its own, made
by name, in front of a fake upstream that answers as fast as ours does. All take turns in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import pathlib
import shutil
import socket
import statistics
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import httpx
import uvloop

from router.folders import checkout, work_folder
from services.bench.bench import SUITES, Bench, Server, save
from services.bench.environment import make_environment
from services.bench.hop import Subject, make_subjects
from services.bench.load import Ask, cpu_per_request_s, infer, latencies_s
from services.local import probes
from services.local.errors import CommandError
from services.local.run import run_owning_children
from trainer.evaluation import facts

LITELLM = "litellm[proxy]==1.99.4"
OURS = ("backend", "proxy", "Generate", "relay", "GenerateStream")
NAMES: Mapping[str, str] = {
    "proxy": "bare grpc.aio pass-through, unary",
    "Generate": "Tiercel, Generate",
    "relay": "bare grpc.aio relay, 8 tokens",
    "GenerateStream": "Tiercel, GenerateStream, 8 tokens",
    "nginx": "nginx grpc_pass, 8 tokens",
    "LiteLLM": "LiteLLM proxy, chat completion",
}
RATE_RPS = 20.0
"""Of single requests whose latency is taken: low enough for the slowest."""
NGINX = """
daemon off;
worker_processes 1;
error_log stderr warn;
pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000;
  upstream backend {{ server {backend}; keepalive 32; keepalive_requests 1000000; }}
  server {{
    listen {address} http2;
    location / {{ grpc_pass grpc://backend; }}
  }}
}}
"""
LITELLM_CONFIG = """
model_list:
  - model_name: tiercel
    litellm_params: {{model: openai/fake, api_base: "http://{upstream}/v1", api_key: none}}
litellm_settings: {{telemetry: false, num_retries: 0}}
"""


async def measure(bench: Bench, litellm: pathlib.Path | None) -> dict[str, Any]:
    """Measures everything there is; returns rows by name, and what is missing with its reason."""
    missing = {} if litellm else {"LiteLLM": "not asked for"}
    subjects = await make_subjects(bench, OURS)
    backend = subjects.pop("backend")
    nginx = shutil.which("nginx")
    if nginx is None:
        missing["nginx"] = "no nginx on this machine (a Debian package of that name has it)"
    else:
        subjects["nginx"] = await _nginx(bench, nginx, backend.server)
    if litellm is not None:
        subjects["LiteLLM"] = await _litellm(bench, litellm)
    took_s: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(bench.rounds + 1):
        for name, subject in subjects.items():
            bench.say(number / (bench.rounds + 1), f"round {number}: {name}")
            count = math.ceil(bench.part(400 if number else 100))
            cpu_s = await cpu_per_request_s(subject.ask, subject.server, count)
            latency_s = await latencies_s(subject.ask, RATE_RPS, bench.part(8.0))
            if number:  # the first round warms up
                subject.cpu_s_R.append(cpu_s)
                took_s[name] += latency_s
    direct_s = sorted(await latencies_s(backend.ask, RATE_RPS, bench.part(8.0)))
    rows = {
        name: {
            "what": NAMES[name],
            "cpu_us": 1e6 * statistics.median(subject.cpu_s_R),
            "per_cpu_s": 1.0 / statistics.median(subject.cpu_s_R),
            "p50_ms": 1e3 * _at(sorted(took_s[name]), 0.5),
            "p99_ms": 1e3 * _at(sorted(took_s[name]), 0.99),
            "memory_mb": subject.server.tree_memory_mb(),
        }
        for name, subject in subjects.items()
    }
    return {"rows": rows, "missing": missing, "backend_p50_ms": 1e3 * _at(direct_s, 0.5)}


async def _nginx(bench: Bench, program: str, backend: Server) -> Subject:
    address = _free_address()
    config = bench.folder / "nginx.conf"
    text = NGINX.format(folder=bench.folder, backend=backend.address, address=address)
    config.write_text(text, encoding="utf-8")
    command = (program, "-p", str(bench.folder), "-c", str(config))
    pid = await bench.start_program("nginx", command, lambda: _listens(address))
    server = Server(address, "", pid)
    return Subject(server, infer(bench, server))


async def _litellm(bench: Bench, environment: pathlib.Path) -> Subject:
    upstream = await bench.start("upstream", "services.bench.peers", "chat")
    address = _free_address()
    config = bench.folder / "litellm.yaml"
    config.write_text(LITELLM_CONFIG.format(upstream=upstream.address), encoding="utf-8")
    host, _, port = address.partition(":")
    command = [str(environment / "bin" / "litellm"), "--config", str(config), "--host", host]
    pid = await bench.start_program(
        "litellm",
        [*command, "--port", port, "--num_workers", "1"],
        lambda: probes.http_ok(address, "/health/liveliness"),
        # Else it asks the network for prices of models when it starts.
        variables={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": ""},
    )
    return Subject(Server(address, "", pid), _chat(bench, address))


def _chat(bench: Bench, address: str) -> Ask:
    client = httpx.AsyncClient(base_url=f"http://{address}", trust_env=False, timeout=10.0)
    bench.stack.push_async_callback(client.aclose)
    question = {"model": "tiercel", "messages": [{"role": "user", "content": "word " * 96}]}

    async def ask() -> object:
        reply = await client.post("/v1/chat/completions", json=question)
        return reply.raise_for_status()

    return ask


def show(report: Mapping[str, Any]) -> str:
    """Returns the report as a Markdown table."""
    lines = [
        "| what | CPU us a request | requests a CPU second | p50 ms | p99 ms | memory MB |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['what']} | {row['cpu_us']:,.0f} | {row['per_cpu_s']:,.0f} | {row['p50_ms']:.2f} "
        f"| {row['p99_ms']:.2f} | {row['memory_mb']:,.0f} |"
        for row in report["rows"].values()
    ]
    lines += [f"| {name}: {reason} | | | | | |" for name, reason in report["missing"].items()]
    return "\n".join(lines)


def _at(values: list[float], share: float) -> float:
    return values[int(share * len(values))]


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def _listens(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    return True


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def _run(suite: str, with_litellm: bool, path: pathlib.Path | None) -> int:
    environment, reason = None, ""
    if with_litellm:
        _say(f"making the environment of {LITELLM} (once)")
        try:
            environment = await asyncio.to_thread(make_environment, work_folder("litellm"), LITELLM)
        except CommandError as error:
            reason = str(error)
    with tempfile.TemporaryDirectory(prefix="tiercel-bench-") as folder:
        async with contextlib.AsyncExitStack() as stack:
            bench = Bench(
                wanted=frozenset(),
                suite=SUITES[suite],
                folder=pathlib.Path(folder),
                stack=stack,
                say=lambda share, text: _say(f"{share:4.0%} {text}"),
            )
            report = await measure(bench, environment)
    if reason:
        report["missing"]["LiteLLM"] = reason
    report |= {"commit": facts.commit(checkout()), "machine": facts.machine(), "at": facts.now()}
    if path is not None:
        await save(report, path)
    print(show(report))
    return 0


def main() -> int:
    """Reads the command line and measures; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m services.bench.outside",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--suite", choices=tuple(SUITES), default="quick")
    parser.add_argument("--no-litellm", dest="litellm", action="store_false")
    parser.add_argument("--json", type=pathlib.Path, help="file for the report")
    options = parser.parse_args()
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json: no folder {options.json.parent}")
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    try:
        return run_owning_children(_run(options.suite, options.litellm, options.json), _say)
    except CommandError as error:
        _say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
