"""Writes a model repository and prints its endpoints."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from services.local.triton.errors import TritonServerError
from services.local.triton.repository.layout import ServerRepository
from services.local.triton.repository.paced import PacedFleet, write_paced_repository
from services.local.triton.repository.reference import write_reference_repository

_FIRST_PORT = 8001
_PORTS_PER_SERVER = 10


def main(arguments: list[str] | None = None) -> None:
    """Writes a repository and prints its endpoints; exits 2 with one line when it cannot."""
    options = _parser().parse_args(arguments)
    tiers = tuple(tier for tier in options.tiers.split(",") if tier)
    try:
        if options.kind == "paced":
            fleet = PacedFleet(
                profile=options.profile,
                tiers=tiers,
                device_count=options.devices,
                time_scale=options.time_scale,
                sharing="own" if options.own else "shared",
                servers="per_device" if options.server_per_device else "one",
                output_tokens_mean=options.output_tokens_mean,
                output_tokens_variation=options.output_tokens_variation,
            )
            servers = write_paced_repository(options.out, fleet, keeps_same=True).servers
        else:
            servers = (write_reference_repository(options.out, tiers, max_batch=options.max_batch),)
    except TritonServerError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    for index, server in enumerate(servers):
        sys.stdout.write(_describe(server, _FIRST_PORT + index * _PORTS_PER_SERVER))


def _describe(server: ServerRepository, port: int) -> str:
    """Returns how to start a server and its endpoints as TOML."""
    lines = [
        f"# python -m services.local.triton.server --repository {server.path} --grpc-port {port}"
    ]
    for entry in server.endpoints(f"127.0.0.1:{port}"):
        lines.append("[[mesh.endpoints]]")
        lines += [f"{key} = {_toml(value)}" for key, value in entry.items() if value]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """Returns a TOML value; Triton's environment, where this also runs, has no writer."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {json.dumps(v)}" for key, v in value.items()) + " }"
    return json.dumps(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.local.triton.repository", description=__doc__
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    paced = kinds.add_parser("paced", help="a fleet timed by a latency profile")
    reference = kinds.add_parser("reference", help="the trained tiers of this repository")
    for kind in (paced, reference):
        kind.add_argument("--out", type=Path, required=True)
        kind.add_argument("--tiers", default="small,medium,large")
    paced.add_argument("--profile", type=Path, required=True)
    paced.add_argument("--devices", type=int, default=1, help="with --own: per tier")
    paced.add_argument("--time-scale", type=float, default=1.0)
    paced.add_argument("--own", action="store_true", help="a device of its own for every tier")
    paced.add_argument("--server-per-device", action="store_true")
    paced.add_argument("--output-tokens-mean", type=float, default=0.0)
    paced.add_argument("--output-tokens-variation", type=float, default=0.5)
    reference.add_argument("--max-batch", type=int)
    return parser


if __name__ == "__main__":
    main()
