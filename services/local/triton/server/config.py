"""How one Triton server is run, and the command line that says so to tritonserver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# How long Triton waits for its models before it exits hard. It can be in vain: error responses of
# decoupled models that cross each other leave a reference behind which keeps the model loaded.
_TRITON_EXIT_TIMEOUT_S = 5
# Enough for a stub that imports torch on a machine with busy cores.
_STUB_TIMEOUT_S = 120
# Triton traces one request in this many by itself; requests that carry a sampled `traceparent`
# are traced whatever the rate, which is what a head-sampled mesh wants.
_NEVER_BY_ITSELF = 2**31 - 1
_TRACE_EXPORT_MS = 1000
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class TritonServerConfig:
    """How to run one Triton server.

    Attributes:
        repository: Model repository: one directory per model, each with a `config.pbtxt`.
        environment: Python environment with Triton in it; None: see `find_environment`.
        host: Address of all three listeners.
        grpc_port: gRPC port; 0: any free one.
        http_port: HTTP port (health); 0: any free one.
        metrics_port: Prometheus port; 0: any free one.
        cpu_cores: Cores that Triton and its stubs may use; empty: all.
        nice: Nice level of Triton and its stubs, 0 to 19.
        trace_endpoint: OTLP/HTTP address for spans, for example
            `http://127.0.0.1:4318/v1/traces`; empty: no tracing.
        trace_service_name: `service.name` of Triton's spans.
        trace_self_sampled: Whether Triton also traces requests without a `traceparent`.
        log_path: File for everything Triton and its models print; None: `build/triton/`.
        ready_timeout_s: Longest time from start to ready.
        exit_timeout_s: Time for a graceful stop before the process group is killed. Triton
            takes about 4 s; less leaves its stubs behind.
        build_directory: Where the backends directory is laid out; None: in the work folder.
        variables: Further environment variables for Triton and its stubs.
        tls_folder: Folder with `ca.crt`, `tls.crt` and `tls.key`: gRPC is by TLS, for callers with
            a certificate, and HTTP on loopback alone, since it has none; None: plain text.
        extra_arguments: Further arguments for tritonserver.
    """

    repository: Path
    environment: Path | None = None
    host: str = "127.0.0.1"
    grpc_port: int = 0
    http_port: int = 0
    metrics_port: int = 0
    cpu_cores: tuple[int, ...] = ()
    nice: int = 0
    trace_endpoint: str = ""
    trace_service_name: str = "triton"
    trace_self_sampled: bool = False
    log_path: Path | None = None
    ready_timeout_s: float = 120.0
    exit_timeout_s: float = 15.0
    build_directory: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    tls_folder: Path | None = None
    extra_arguments: tuple[str, ...] = ()


def arguments(
    config: TritonServerConfig, repository: Path, ports: tuple[int, ...], token: str
) -> list[str]:
    """Returns tritonserver's own arguments; `repository` is a path that a shell leaves alone."""
    grpc_port, http_port, metrics_port = ports
    found = [
        f"--id={token}",
        f"--model-repository={repository}",
        "--disable-auto-complete-config",
        "--allow-gpu-metrics=false",
        "--pinned-memory-pool-byte-size=0",
        f"--exit-timeout-secs={_TRITON_EXIT_TIMEOUT_S}",
        f"--backend-config=python,shm-region-prefix-name={token}",
        f"--backend-config=python,stub-timeout-seconds={_STUB_TIMEOUT_S}",
    ]
    # Every listener would otherwise be open to all interfaces.
    for name, port in (("grpc", grpc_port), ("http", http_port), ("metrics", metrics_port)):
        is_local = name == "http" and config.tls_folder is not None
        host = _LOOPBACK if is_local else config.host
        found += [f"--{name}-address={host}", f"--{name}-port={port}"]
    if config.tls_folder is not None:
        found += [
            "--grpc-use-ssl=true",
            "--grpc-use-ssl-mutual=true",
            f"--grpc-server-cert={config.tls_folder / 'tls.crt'}",
            f"--grpc-server-key={config.tls_folder / 'tls.key'}",
            f"--grpc-root-cert={config.tls_folder / 'ca.crt'}",
        ]
    if config.trace_endpoint:
        rate = 1 if config.trace_self_sampled else _NEVER_BY_ITSELF
        settings = (
            "mode=opentelemetry",
            "level=TIMESTAMPS",
            f"rate={rate}",
            f"opentelemetry,url={config.trace_endpoint}",
            f"opentelemetry,resource=service.name={config.trace_service_name}",
            f"opentelemetry,bsp_schedule_delay={_TRACE_EXPORT_MS}",
        )
        found += [f"--trace-config={setting}" for setting in settings]
    return found
