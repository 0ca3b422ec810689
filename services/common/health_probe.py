"""Asks a server for its health: `python -m services.common.health_probe ADDRESS [SERVICE]`.

Exit code 0 if it says SERVING (with `--http PATH`: status 200), 1 if it says anything else or does
not answer, 2 if called wrongly.
The container images use it. Where the service's certificates are named in the environment, as they
are in containers, the probe calls by TLS.
"""

from __future__ import annotations

import argparse
import http.client
import os
import ssl
import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.access.caller import Caller, CallerError
from services.common.addresses import parse_address
from services.common.channels import open_blocking_channel

_UNHEALTHY_EXIT_CODE = 1


def probe(
    address: str,
    service: str,
    timeout_s: float,
    credentials: grpc.ChannelCredentials | None = None,
) -> str:
    """Returns the health of `service` at `address`.

    Args:
        address: `host:port` of the server.
        service: Protobuf name of a service; empty asks for the server as a whole.
        timeout_s: Longest wait for the answer, seconds.
        credentials: By TLS; None means plain text.

    Returns:
        SERVING, NOT_SERVING, ..., or the name of the status code if the call failed.
    """
    with open_blocking_channel(address, credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def probe_http(address: str, path: str, timeout_s: float, roots: str = "") -> str:
    """Returns the status of a page, or what kept it from being read.

    Args:
        address: `host:port` of the server.
        path: Path of the page.
        timeout_s: Longest wait, seconds.
        roots: PEM file of the roots that signed its certificate; empty means plain text.
    """
    try:
        connection = _connection(address, timeout_s, roots)
        connection.request("GET", path)
        status = str(connection.getresponse().status)
        connection.close()
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    return status


def _connection(address: str, timeout_s: float, roots: str) -> http.client.HTTPConnection:
    if not roots:
        return http.client.HTTPConnection(address, timeout=timeout_s)
    context = ssl.create_default_context(cafile=roots)
    context.check_hostname = False  # it is asked on loopback, by no name of its certificate
    return http.client.HTTPSConnection(address, timeout=timeout_s, context=context)


def main(argv: Sequence[str] | None = None) -> int:
    """Probes once, prints what was found on one line and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m services.common.health_probe", description="Probe the health of a server."
    )
    parser.add_argument("address", metavar="HOST:PORT", help="address of the server")
    parser.add_argument("service", nargs="?", default="", help="gRPC service; default: the server")
    parser.add_argument("--http", metavar="PATH", help="ask for this page instead of gRPC health")
    parser.add_argument("--timeout-s", type=float, default=2.0, help="longest wait for the answer")
    options = parser.parse_args(argv)
    try:
        parse_address(options.address)
    except ValueError as error:
        parser.error(f"{options.address}: {error}")
    if not 0.0 < options.timeout_s <= 60.0:
        parser.error(f"--timeout-s: must be above 0 and at most 60 (got {options.timeout_s:g})")
    if options.http is not None:
        roots = Caller.of_environment(os.environ).roots
        found = probe_http(options.address, options.http, options.timeout_s, roots)
        sys.stdout.write(f"{options.address} {found}\n")
        return 0 if found == "200" else _UNHEALTHY_EXIT_CODE
    try:
        credentials = Caller.of_environment(os.environ).credentials(options.address)
    except CallerError as error:
        parser.error(str(error))
    found = probe(options.address, options.service, options.timeout_s, credentials)
    sys.stdout.write(f"{options.address} {found}\n")
    return 0 if found == "SERVING" else _UNHEALTHY_EXIT_CODE


if __name__ == "__main__":
    sys.exit(main())
