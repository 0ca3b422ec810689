"""Build hook: generates protobuf and gRPC stubs of protos/ into gen/."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StubBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs protoc over every .proto, so that `pip install` alone yields importable stubs."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generates the stubs; raises RuntimeError when protoc rejects a file."""
        generate_stubs(Path(self.root))


def generate_stubs(root: Path) -> None:
    """Writes `gen/tiercel/**` from `protos/tiercel/**`: messages, services and their type stubs."""
    from grpc_tools import protoc

    protos = root / "protos"
    gen = root / "gen"
    shutil.rmtree(gen / "tiercel", ignore_errors=True)
    gen.mkdir(exist_ok=True)
    includes = [str(Path(protoc.__file__).parent / "_proto"), str(protos)]
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
        f"--python_out={gen}",
        f"--grpc_python_out={gen}",
        f"--mypy_out={gen}",
        f"--mypy_grpc_out={gen}",
        *(str(path) for path in sorted(protos.glob("tiercel/**/*.proto"))),
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed on protos/; its message is above")
    for folder in [gen / "tiercel", *(p for p in (gen / "tiercel").rglob("*") if p.is_dir())]:
        (folder / "__init__.py").touch()
        (folder / "py.typed").touch()


if __name__ == "__main__":
    generate_stubs(Path(__file__).resolve().parent)
