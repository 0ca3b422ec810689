"""Writes a model repository of the reference tiers."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format

from services.local.triton.repository.layout import (
    DevicePlacement,
    RepositoryError,
    ServerRepository,
    clear,
    models_root,
    read_model_config,
)


def write_reference_repository(
    directory: Path, tiers: tuple[str, ...], *, max_batch: int | None = None
) -> ServerRepository:
    """Writes a repository of the reference tiers that links to their sources.

    Args:
        directory: Where to write; an earlier repository there is replaced.
        tiers: Tier names, each a directory of `deploy/triton/reference`.
        max_batch: Most sequences in one iteration, for all tiers; None: as in their sources.

    Raises:
        RepositoryError: A tier is not there, or the directory holds other files.
    """
    source = models_root() / "reference"
    missing = [tier for tier in tiers if not (source / tier / "config.pbtxt").is_file()]
    if missing or not tiers:
        raise RepositoryError(f"tiers: no reference tier named {', '.join(missing) or '(none)'}")
    if max_batch is not None and max_batch < 1:
        raise RepositoryError(f"max_batch: must be at least 1 (got {max_batch})")
    clear(directory)
    path = directory / "triton-0"
    for tier in tiers:
        config = read_model_config(source / tier / "config.pbtxt")
        if max_batch is not None:
            config.parameters["tiercel_max_batch"].string_value = str(max_batch)
        (path / tier).mkdir(parents=True)
        (path / tier / "config.pbtxt").write_text(
            text_format.MessageToString(config), encoding="utf-8"
        )
        # The model finds its shared parts from its own, resolved place.
        (path / tier / "1").symlink_to((source / tier / "1").absolute())
    placement = DevicePlacement(device="triton-0", models={tier: tier for tier in tiers})
    return ServerRepository(name="triton-0", path=path, devices=(placement,))
