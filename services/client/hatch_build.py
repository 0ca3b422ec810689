"""Build hook: generates protobuf and gRPC stubs of protos/ into the package `tiercel`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_OTHERS = {"envoy/v3": "envoy/service/ext_proc/v3"}
"""Contracts of others, by the place of their stubs below `tiercel`: no package here is theirs."""


class StubBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs protoc over every .proto, so that `pip install` alone yields importable stubs."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generates the stubs; raises RuntimeError when protoc rejects a file."""
        generate_stubs(Path(self.root))


def generate_stubs(root: Path) -> None:
    """Writes `tiercel/<name>/**` of each `protos/tiercel/<name>`: messages, services, their types.

    What others wrote the contract of is written below `tiercel` too, see `_OTHERS`.

    Args:
        root: The client's folder; the protos lie in it (a source distribution) or in the checkout
            around it.

    Raises:
        RuntimeError: protoc rejects a file.
    """
    from grpc_tools import protoc

    protos = next(path for path in (root / "protos", root.parents[1] / "protos") if path.is_dir())
    names = {path.name for path in (protos / "tiercel").iterdir()}
    names |= {place.partition("/")[0] for place in _OTHERS}
    folders = [root / "tiercel" / name for name in sorted(names)]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    others = [f"tiercel/{place}={protos / below}" for place, below in _OTHERS.items()]
    includes = [str(Path(protoc.__file__).parent / "_proto"), *others, str(protos)]
    plugin_dir = Path(sys.executable).parent
    plugins = [
        f"--plugin=protoc-gen-{name}={plugin_dir / f'protoc-gen-{name}'}"
        for name in ("mypy", "mypy_grpc")
        if (plugin_dir / f"protoc-gen-{name}").exists()
    ]
    arguments = [
        "protoc",
        *(f"-I{include}" for include in includes),
        *plugins,
        *(f"--{kind}_out={root}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
        *(str(path) for path in sorted(protos.glob("**/*.proto"))),
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed on protos/; its message is above")
    for folder in folders:
        for package in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            (package / "__init__.py").touch()


if __name__ == "__main__":
    generate_stubs(Path(__file__).resolve().parent)
