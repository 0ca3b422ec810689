"""Command line shared by the services: the settings file and overrides over it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the command line said.

    Args:
        config: Settings file, None if not given.
        overrides: `section.key` to text.
        ready_file: Where to write the bound addresses once SERVING, None for nowhere.
    """

    config: Path | None
    overrides: dict[str, str]
    ready_file: Path | None


def parse_arguments(
    *,
    program: str,
    section: str,
    description: str,
    options: Mapping[str, str] = MappingProxyType({}),
    argv: Sequence[str] | None = None,
) -> Arguments:
    """Parses the command line of a service; ends the process with exit code 2 on a mistake.

    Args:
        program: Name shown in the usage line, e.g. `load-monitor`.
        section: The service's section, which `--listen`, `--metrics-listen` and `options` write to.
        description: One sentence about the service.
        options: Further keys of the section with an option of their own, with its help.
        argv: Arguments without the program's name; None means the process's own.
    """
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file (TOML)")
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help="where to serve; port 0 takes a free one"
    )
    parser.add_argument(
        "--metrics-listen", metavar="HOST:PORT", help="Prometheus address; empty for none"
    )
    for key, text in options.items():
        parser.add_argument(f"--{key}", metavar="VALUE", help=text)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="settings",
        help="override one setting; may be given several times",
    )
    parser.add_argument(
        "--ready-file",
        type=Path,
        metavar="FILE",
        help="written as JSON with the bound addresses once the service serves",
    )
    parsed = parser.parse_args(argv)
    overrides: dict[str, str] = {}
    for text in parsed.settings:
        key, separator, value = text.partition("=")
        if not separator or "." not in key:
            parser.error(f"--set: expected SECTION.KEY=VALUE (got {text!r})")
        overrides[key] = value
    if parsed.listen is not None:
        overrides[f"{section}.listen"] = parsed.listen
    if parsed.metrics_listen is not None:
        overrides[f"{section}.metrics_listen"] = parsed.metrics_listen
    for key in options:
        if getattr(parsed, key) is not None:
            overrides[f"{section}.{key}"] = getattr(parsed, key)
    return Arguments(config=parsed.config, overrides=overrides, ready_file=parsed.ready_file)
