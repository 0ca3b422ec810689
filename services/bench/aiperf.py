"""NVIDIA's aiperf at the OpenAI-shaped door: `python -m services.bench.aiperf [--json FILE]`.

Makes aiperf's environment (`.venv-aiperf`, once), starts a mesh of paced tiers with a door, and
has `aiperf profile` ask it, streaming and not. Every request must succeed, and both sides must
have counted the same. aiperf wants a tokenizer, and would fetch one from a hub of models: it gets
a small one of its own, in which a byte is a token, and asks no hub.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from router.folders import checkout, work_folder
from services.bench.bench import save
from services.bench.environment import make_environment
from services.local.embedded import EmbeddedMesh, MeshOptions
from services.local.errors import CommandError
from services.local.launch import tied_command
from services.local.paced_mesh import paced_options
from services.local.run import run_owning_children
from trainer.evaluation import facts
from trainer.shipped import PROFILES, QUALITY, shipped

NAME = "aiperf"
PROFILE, DEVICES = "opt-a100", 2
ROUTE = "/v1/chat/completions"
OUTPUT_TOKENS = 16
"""Limit of an answer; those of paced tiers are eight tokens long on average."""
DEADLINE_MS = 30_000
"""Far away: no deadline is judged here, and a busy machine shall keep it."""
RUNS: Mapping[str, tuple[str, ...]] = {"streamed": ("--streaming",), "whole": ()}
"""What of aiperf's options differs between the runs."""
KEPT = (
    "request_count", "request_latency", "time_to_first_token", "inter_token_latency",
    "output_sequence_length", "request_throughput", "output_token_throughput",
)  # fmt: skip
"""Of aiperf's metrics, those that the report keeps."""
STATISTICS = ("unit", "avg", "p50", "p99", "min", "max")
COLUMNS = (
    "answers", "counted by aiperf / by the door", "tokens", "first token ms, p50 / p99",
    "between tokens ms", "whole ms, p50 / p99", "mean ms", "the door's mean ms",
)  # fmt: skip
LIMIT_S = 900.0
"""Longest time one aiperf may take: it starts eight processes, and each loads all of aiperf."""
END_WAIT_S = 10.0
VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "PYTHONPATH": "",
    # Its own limits are of seconds, and on few cores its processes take longer to load.
    "AIPERF_SERVICE_REGISTRATION_TIMEOUT": "300",
    "AIPERF_SERVICE_REGISTRATION_MAX_ATTEMPTS": "300",
    "AIPERF_SERVICE_START_TIMEOUT": "300",
    "AIPERF_SERVICE_PROFILE_START_TIMEOUT": "300",
    "AIPERF_SERVICE_HEARTBEAT_MISSED_THRESHOLD": "60",
}
TOKENIZER, REVISION = "tiercel/bytes", "0" * 40
END_TOKEN = "<|end|>"  # noqa: S105 - of text


@dataclasses.dataclass(frozen=True)
class Plan:
    """What each run asks.

    Attributes:
        count: Requests.
        concurrency: Of them at a time.
        input_tokens: Length of a prompt; a token is a byte.
    """

    count: int = 40
    concurrency: int = 4
    input_tokens: int = 384


@dataclasses.dataclass(frozen=True)
class DoorBook:
    """What the door has counted on its route since its start.

    Attributes:
        handled: Requests by status.
        took_s: Time they took, all together.
    """

    handled: Mapping[str, int]
    took_s: float

    def since(self, before: DoorBook) -> DoorBook:
        """Returns what came after an earlier look."""
        more = {each: n - before.handled.get(each, 0) for each, n in self.handled.items()}
        handled = {status: count for status, count in more.items() if count}
        return DoorBook(handled, self.took_s - before.took_s)


def write_tokenizer(cache: pathlib.Path) -> None:
    """Lays a tokenizer into a cache of a hub of models: one in which a byte is a token.

    A prompt of so many tokens is then of so many bytes, however it is cut. Told to ask no hub,
    aiperf looks for tokenizers in its cache alone, and takes no path.

    Args:
        cache: What `HF_HUB_CACHE` names.
    """
    vocabulary = {letter: byte for byte, letter in enumerate(_letters())}
    end = {"id": len(vocabulary), "content": END_TOKEN, "special": True, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    parts = {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{**end, "single_word": False, "lstrip": False, "rstrip": False}],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_TOKEN,
            "model_max_length": 1_000_000,
        },
    }
    model = cache / f"models--{TOKENIZER.replace('/', '--')}"
    files = {f"snapshots/{REVISION}/{name}": json.dumps(part) for name, part in parts.items()}
    for name, text in {**files, "refs/main": REVISION}.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(text, encoding="utf-8")


def _letters() -> list[str]:
    """Returns how byte-level tokenizers spell each byte: as itself where it can be seen."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in seen else next(hidden)) for byte in range(0x100)]


def options_of(plan: Plan, door: str, out: pathlib.Path) -> list[str]:
    """Returns the options of `aiperf profile` that all runs share."""
    return [
        "--model", "tiercel/piqa", "--url", f"http://{door}", "--endpoint-type", "chat",
        # Not by --header: aiperf makes a number of what looks like one, and refuses that.
        "--extra-inputs", json.dumps({"metadata": {"tiercel_deadline_ms": str(DEADLINE_MS)}}),
        "--tokenizer", TOKENIZER, "--isl", str(plan.input_tokens),
        "--osl", str(OUTPUT_TOKENS), "--use-server-token-count",
        "--request-count", str(plan.count), "--concurrency", str(plan.concurrency),
        "--random-seed", "1", "--workers-max", "1", "--record-processors", "1",
        "--no-gpu-telemetry", "--ui", "none", "--output-artifact-dir", str(out),
    ]  # fmt: skip


def numbers_of(export: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns what the report keeps of aiperf's own (`profile_export_aiperf.json`)."""
    found = {tag: export[tag] for tag in KEPT if export.get(tag)}
    return {
        tag: {name: metric[name] for name in STATISTICS if metric.get(name) is not None}
        for tag, metric in found.items()
    }


def problems_of(export: Mapping[str, Any], door: DoorBook, plan: Plan) -> list[str]:
    """Returns in which ways a run fell short; empty if both sides counted every request answered.

    Args:
        export: aiperf's own report.
        door: What the door counted meanwhile.
        plan: What was asked.
    """
    wanted = {"request_count": plan.count, "error_request_count": 0}
    counts = {tag: int((export.get(tag) or {}).get("avg", 0)) for tag in wanted}
    found = [
        f"aiperf counted {counts[tag]} ({tag}), not {count}"
        for tag, count in wanted.items()
        if counts[tag] != count
    ]
    if not (export.get("output_sequence_length") or {}).get("min"):
        found.append("aiperf saw an answer without a token")
    if export.get("was_cancelled") or export.get("is_complete") is False:
        found.append(f"aiperf did not end its run: {export.get('incomplete_reason')}")
    if door.handled != {"200": plan.count}:
        found.append(f"the door answered {dict(door.handled)}, not {plan.count} with status 200")
    return found


def book_of(page: str) -> DoorBook:
    """Returns what a page of the door's metrics says of chat completions."""
    handled: dict[str, int] = {}
    took_s = 0.0
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.labels.get("route") != ROUTE:
                continue
            if sample.name == "tiercel_http_handled_total":
                status = sample.labels["status"]
                handled[status] = handled.get(status, 0) + int(sample.value)
            elif sample.name == "tiercel_http_duration_seconds_sum":
                took_s = sample.value
    return DoorBook(handled, took_s)


def show(report: Mapping[str, Any]) -> str:
    """Returns the report as a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for name, run in report["runs"].items():
        numbers = run["numbers"]
        cells = [
            name,
            f"{numbers['request_count']['avg']:.0f} / {sum(run['door'].values())}",
            _one(numbers["output_sequence_length"]),
            _pair(numbers.get("time_to_first_token")),
            _one(numbers.get("inter_token_latency")),
            _pair(numbers["request_latency"]),
            _one(numbers["request_latency"]),
            f"{run['door_mean_ms']:,.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _pair(metric: Mapping[str, Any] | None) -> str:
    return f"{metric['p50']:,.0f} / {metric['p99']:,.0f}" if metric else "-"


def _one(metric: Mapping[str, Any] | None) -> str:
    return f"{metric['avg']:,.1f}" if metric else "-"


def mesh_options() -> MeshOptions:
    """Returns what starts the mesh that is asked."""
    options = paced_options(
        NAME,
        shipped(PROFILES, f"{PROFILE}.toml"),
        quality=shipped(QUALITY, "opt.toml"),
        device_count=DEVICES,
    )
    return dataclasses.replace(options, trainer=False, openai_door=True, fresh=True)


async def measure(environment: pathlib.Path, plan: Plan) -> dict[str, Any]:
    """Starts a mesh and asks it by aiperf; returns the report, JSON-ready.

    Raises:
        CommandError: The mesh did not start, aiperf failed, or a request was not answered.
    """
    folder = work_folder(NAME)
    write_tokenizer(folder / "hub")
    runs: dict[str, Any] = {}
    async with EmbeddedMesh(mesh_options(), say=_say) as mesh:
        _say("starting the mesh")
        await mesh.start_backends()
        await mesh.start_services()
        door = mesh.addresses["openai_door"]
        for name, more in RUNS.items():
            _say(f"aiperf, {name}: {plan.count} requests")
            out = _fresh(folder / name)
            before = await _book(door)
            await _profile(environment, [*options_of(plan, door, out), *more], out)
            counted = (await _book(door)).since(before)
            export = json.loads((out / "profile_export_aiperf.json").read_text(encoding="utf-8"))
            problems = problems_of(export, counted, plan)
            if problems:
                raise CommandError(f"aiperf, {name}: {'; '.join(problems)} (see {out})")
            runs[name] = {
                "version": export["aiperf_version"],
                "numbers": numbers_of(export),
                "door": counted.handled,
                "door_mean_ms": 1e3 * counted.took_s / plan.count,
            }
    return {"plan": dataclasses.asdict(plan), "runs": runs}


def _fresh(folder: pathlib.Path) -> pathlib.Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


async def _profile(environment: pathlib.Path, options: Sequence[str], out: pathlib.Path) -> None:
    """Runs `aiperf profile`; what it says is kept beside its files."""
    log = out / "output.log"
    program = (str(environment / "bin" / "aiperf"), "profile", *options)
    # It leaves its prompts in the folder for temporary files.
    scratch = tempfile.TemporaryDirectory(prefix="tiercel-aiperf-", ignore_cleanup_errors=True)
    own = {"HF_HUB_CACHE": str(work_folder(NAME, "hub")), "TMPDIR": scratch.name}
    with scratch, log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *tied_command(program),
            env={**os.environ, **VARIABLES, **own},
            cwd=out,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                code = await process.wait()
        except TimeoutError:
            raise CommandError(f"aiperf did not end within {LIMIT_S:.0f} s (log: {log})") from None
        finally:
            if process.returncode is None:
                process.terminate()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(END_WAIT_S):
                        await process.wait()
                with contextlib.suppress(ProcessLookupError):  # its own processes may be left
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
    if code:
        raise CommandError(
            f"aiperf ended with {code} (log: {log}; why requests failed: profile_export.jsonl)"
        )


async def _book(door: str) -> DoorBook:
    async with httpx.AsyncClient(trust_env=False, timeout=10.0) as client:
        reply = await client.get(f"http://{door}/metrics")
    return book_of(reply.raise_for_status().text)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def _run(plan: Plan, path: pathlib.Path | None) -> int:
    root = checkout()
    if root is None:
        raise CommandError("aiperf runs in a checkout only")
    _say("making the environment of aiperf (once: 900 MB, some minutes)")
    environment = await asyncio.to_thread(
        make_environment, root / ".venv-aiperf", NAME, root / "requirements" / "aiperf.txt"
    )
    report: dict[str, Any] = {
        "command": "make aiperf",
        "commit": facts.commit(root),
        "machine": facts.machine(),
        "at": facts.now(),
        **await measure(environment, plan),
    }
    if path is not None:
        await save(report, path)
    print(show(report))
    return 0


def main() -> int:
    """Reads the command line and asks; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m services.bench.aiperf",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--requests", type=int, default=Plan.count, help="of each run")
    parser.add_argument("--json", type=pathlib.Path, help="file for the report")
    options = parser.parse_args()
    if options.requests < 1:
        parser.error("--requests: at least 1")
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json: no folder {options.json.parent}")
    try:
        return run_owning_children(_run(Plan(options.requests), options.json), _say)
    except CommandError as error:
        _say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
