"""What others cost at the same place: `python -m services.bench.outside [--json FILE]`.

Marks to read ours by. nginx's `grpc_pass` is a plain hop in C: what streaming eight tokens through
costs without Python. LiteLLM's proxy does what our OpenAI-shaped door and its router do together:
it chooses a deployment and passes the answer on. It runs in an environment of its own, made by
name. Both stand before the same fake server of OpenAI's protocol and are asked by the same client;
these two alone are held against a budget. All take turns in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import pathlib
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import uvloop

from router.folders import checkout, work_folder
from services.bench.added import Way
from services.bench.bench import SUITES, Bench, Server, free_address, save
from services.bench.doors import chatting, start_chain
from services.bench.environment import make_environment
from services.bench.hop import make_subjects
from services.bench.load import cpu_by_server_s, infer, latencies_s, percentile
from services.bench.readings import CPU_OF, Reading, rows
from services.bench.run import PACKAGES
from services.local import probes
from services.local.errors import CommandError
from services.local.run import run_owning_children
from trainer.evaluation import facts

VERSION = "1.99.4"
LITELLM = f"litellm[proxy]=={VERSION}"
OURS = ("backend", "proxy", "Generate", "relay", "GenerateStream")
NAMES: Mapping[str, str] = {
    "backend": "fake Triton, asked directly, 8 tokens",
    "proxy": "bare grpc.aio pass-through, unary",
    "Generate": "Tiercel, Generate",
    "relay": "bare grpc.aio relay, 8 tokens",
    "GenerateStream": "Tiercel, GenerateStream, 8 tokens",
    "nginx": "nginx grpc_pass, 8 tokens",
    "upstream": "fake server of OpenAI's protocol, asked directly, chat completion",
    "door": "Tiercel, OpenAI-shaped door and router, chat completion",
    "LiteLLM": f"LiteLLM proxy {VERSION}, chat completion",
}
RATE_RPS = 20.0
"""Of single requests whose latency is taken: low enough for the slowest."""
SINGLE = "single"
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
    chats = await _chats(bench, litellm)
    subjects = await make_subjects(bench, OURS)
    ways = {name: Way(each.ask, {name: each.server}) for name, each in subjects.items()}
    nginx = shutil.which("nginx")
    if nginx is None:
        missing["nginx"] = "no nginx on this machine (a Debian package of that name has it)"
    else:
        server = await _nginx(bench, nginx, subjects["backend"].server)
        ways["nginx"] = Way(infer(bench, server), {"nginx": server})
    ways |= chats
    for number in range(bench.rounds + 1):
        for name, way in ways.items():
            bench.say(number / (bench.rounds + 1), f"round {number}: {name}")
            count = math.ceil(bench.part(400 if number else 100))
            cpu_s = await cpu_by_server_s(way.ask, way.servers, count)
            took_s = await latencies_s(way.ask, RATE_RPS, bench.part(8.0))
            if number:  # the first round warms up
                way.cpu_R.append(cpu_s)
                way.took_R.setdefault(SINGLE, []).append(took_s)
    readings = beside_litellm(ways) if litellm else []
    return {
        "rows": {name: _row(name, way) for name, way in ways.items()},
        "metrics": {each.name: each.judged() for each in readings},
        "missing": missing,
    }


def _row(name: str, way: Way) -> dict[str, Any]:
    cpu_s = statistics.median(sum(cpu.values()) for cpu in way.cpu_R)
    took_s = sorted(each_s for round_s in way.took_R[SINGLE] for each_s in round_s)
    return {
        "what": NAMES[name],
        "cpu_us": 1e6 * cpu_s,
        "cpu_us_by": {server: 1e6 * each_s for server, each_s in way.cpu_s.items()},
        "per_cpu_s": 1.0 / cpu_s,
        "p50_ms": 1e3 * percentile(took_s, 0.5),
        "p99_ms": 1e3 * percentile(took_s, 0.99),
        "memory_mb": sum(server.tree_memory_mb() for server in way.servers.values()),
    }


def beside_litellm(ways: Mapping[str, Way]) -> list[Reading]:
    """Returns what our door and its router cost and add, beside LiteLLM's proxy."""
    ours, theirs = ways["door"], ways["LiteLLM"]
    own, other = ([1.0 / sum(cpu.values()) for cpu in way.cpu_R] for way in (ours, theirs))
    parts = {
        f"{CPU_OF}{name}": 1e6 * cpu_s
        for way in (ours, theirs)
        for name, cpu_s in way.cpu_s.items()
    }
    direct_R, ours_R, theirs_R = (
        [1e6 * percentile(took_s, 0.5) for took_s in way.took_R[SINGLE]]
        for way in (ways["upstream"], ours, theirs)
    )
    added, theirs_added = (
        [a - b for a, b in zip(each_R, direct_R, strict=True)] for each_R in (ours_R, theirs_R)
    )
    direct = {"asked directly, us": statistics.median(direct_R), "requests/s": RATE_RPS}
    return [
        Reading("openai_litellm", own, other, parts),
        Reading("openai_litellm_added_p50", added, theirs_added, direct),
    ]


async def _chats(bench: Bench, litellm: pathlib.Path | None) -> dict[str, Way]:
    """Starts a server that speaks OpenAI, and what stands before it."""
    upstream = await bench.start("upstream", "services.bench.peers", "chat")
    chain = await start_chain(bench, upstream)
    ways = {
        "upstream": Way(chatting(bench, upstream, is_stream=False), {"upstream": upstream}),
        "door": Way(chatting(bench, chain["door"], is_stream=False), chain),
    }
    if litellm is not None:
        server = await _litellm(bench, litellm, upstream)
        ask = chatting(bench, server, is_stream=False, model="tiercel")
        ways["LiteLLM"] = Way(ask, {"LiteLLM": server})
    return ways


async def _nginx(bench: Bench, program: str, backend: Server) -> Server:
    address = free_address()
    config = bench.folder / "nginx.conf"
    text = NGINX.format(folder=bench.folder, backend=backend.address, address=address)
    config.write_text(text, encoding="utf-8")
    command = (program, "-p", str(bench.folder), "-c", str(config))
    return Server(
        address, "", await bench.start_program("nginx", command, lambda: _listens(address))
    )


async def _litellm(bench: Bench, environment: pathlib.Path, upstream: Server) -> Server:
    address = free_address()
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
    return Server(address, "", pid)


def show(report: Mapping[str, Any]) -> str:
    """Returns the report as Markdown tables."""
    lines = [
        "| what | CPU us a request | requests a CPU second | p50 ms | p99 ms | memory MB |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['what']} | {_cpu(row)} | {row['per_cpu_s']:,.0f} | {row['p50_ms']:.2f} "
        f"| {row['p99_ms']:.2f} | {row['memory_mb']:,.0f} |"
        for row in report["rows"].values()
    ]
    lines += [f"| {name}: {reason} | | | | | |" for name, reason in report["missing"].items()]
    if report.get("metrics"):
        lines += ["", *rows(report["metrics"])]
    return "\n".join(lines)


def _cpu(row: Mapping[str, Any]) -> str:
    by = row.get("cpu_us_by", {})
    parts = ", ".join(f"{name} {cpu_us:,.0f}" for name, cpu_us in by.items())
    return f"{row['cpu_us']:,.0f}" + f" ({parts})" * (len(by) > 1)


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
    report |= {
        "command": f"python -m services.bench.outside --suite {suite}",
        "commit": facts.commit(checkout()),
        "machine": facts.machine(),
        "versions": facts.package_versions(PACKAGES),
        "at": facts.now(),
    }
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
