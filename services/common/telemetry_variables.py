"""Which OTEL_* variables are understood: the SDK raises, or ignores in silence, what it is not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from router.messages import one_line
from services.common.addresses import parse_address

_LONGEST_TIMEOUT_S = 3_600.0
_MOST = 1_000_000
_DEFAULT_QUEUE, _DEFAULT_BATCH = 2_048, 512
_SAMPLERS = ("always_on", "always_off", "traceidratio")
_KNOWN_SAMPLERS = (*_SAMPLERS, *(f"parentbased_{name}" for name in _SAMPLERS))
_QUEUE, _BATCH = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
_GRPC_COMPRESSIONS = ("gzip",)
_HTTP_COMPRESSIONS = ("gzip", "deflate")


class Ignored(NamedTuple):
    """A variable that is not understood.

    Args:
        variable: Its name.
        got: Its value, shortened.
        allowed: What it may be.
    """

    variable: str
    got: str
    allowed: str


def understood(environ: Mapping[str, str]) -> tuple[dict[str, str], list[Ignored]]:
    """Returns the variables without the OTEL_* ones that cannot be followed, and those.

    An empty variable counts as not set, as OpenTelemetry's specification says.
    """
    usable = {name: text for name, text in environ.items() if text or not name.startswith("OTEL_")}
    ignored: list[Ignored] = []

    def ignore(name: str, allowed: str) -> None:
        ignored.append(Ignored(name, one_line(usable.pop(name))[:200], allowed))

    for name in sorted(usable):
        for pattern, (allowed, is_right) in _RULES.items():
            if re.fullmatch(pattern, name) and not is_right(usable[name].strip()):
                ignore(name, allowed)
                break
    _check_compression(usable, ignore)
    batch, queue = (
        int(usable.get(name, str(default)).strip())
        for name, default in ((_BATCH, _DEFAULT_BATCH), (_QUEUE, _DEFAULT_QUEUE))
    )
    if batch > queue:
        ignore(_BATCH if _BATCH in usable else _QUEUE, f"{_BATCH} must not be above {_QUEUE}")
    return usable, ignored


def _check_compression(usable: dict[str, str], ignore: Callable[[str, str], None]) -> None:
    protocol = (
        usable.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or usable.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "grpc"
    )
    known = _GRPC_COMPRESSIONS if protocol == "grpc" else _HTTP_COMPRESSIONS
    for name in ("OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"):
        text = usable.get(name, "none").strip().lower()
        if text == "none":  # the gRPC exporter does not know the word
            usable.pop(name, None)
        elif text not in known:
            ignore(name, f"none, {', '.join(known)}")


def _is_timeout(text: str) -> bool:
    try:
        return 0.0 < float(text) <= _LONGEST_TIMEOUT_S
    except ValueError:
        return False


def _is_share(text: str) -> bool:
    try:
        return 0.0 <= float(text) <= 1.0 and math.isfinite(float(text))
    except ValueError:
        return False


def _is_count(text: str, lowest: int) -> bool:
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(_MOST))
    return is_number and lowest <= int(text) <= _MOST


def _is_endpoint(text: str) -> bool:
    try:
        parts = urlsplit(text)
        if parts.scheme in {"http", "https"}:
            return bool(parts.hostname) and parts.port != 0
        parse_address(text)
    except ValueError:
        return False
    return True


_RULES: Mapping[str, tuple[str, Callable[[str], bool]]] = {
    r"OTEL_EXPORTER_OTLP_(TRACES_)?TIMEOUT": (
        f"a number above 0, at most {_LONGEST_TIMEOUT_S:.0f} (seconds)",
        _is_timeout,
    ),
    r"OTEL_EXPORTER_OTLP_(TRACES_)?ENDPOINT": (
        "http://host:port, https://host:port or host:port",
        _is_endpoint,
    ),
    r"OTEL_BSP_\w+": (f"a whole number from 1 to {_MOST}", lambda text: _is_count(text, 1)),
    r"OTEL_\w+_LIMIT": (f"a whole number from 0 to {_MOST}", lambda text: _is_count(text, 0)),
    r"OTEL_TRACES_SAMPLER": (
        ", ".join(_KNOWN_SAMPLERS),
        lambda text: text.lower() in _KNOWN_SAMPLERS,
    ),
    r"OTEL_TRACES_SAMPLER_ARG": ("a number from 0 to 1", _is_share),
}
"""By pattern of the name: what is allowed, and whether a value is."""
