"""What the user names for an evaluation: profile, quality, policies, traces; checked at once."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

from router.catalog import QualityTable, parse_quality
from router.dqn.snapshot import SnapshotError
from router.policies.registry import LEARNED, MissingSnapshotError, known_policies
from router.profile import LatencyProfile, parse_profile
from router.types import InvalidFileError, Task, UnknownPolicyError
from services.cli.errors import InputError
from services.common.triton.environment import project_root
from trainer.evaluation.policies import Contender, baseline, baseline_names, learned, yardsticks
from trainer.evaluation.scenarios import SCENARIOS
from trainer.evaluation.setting import Setting, shared_fleet_setting
from trainer.evaluation.suite import UNPREDICTABLE
from trainer.scenario import default_lengths
from trainer.simulation.workload import WorkloadError
from trainer.traces.fit import TraceModel, fit_trace
from trainer.traces.read import read_trace

SNAPSHOT_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Asked:
    """What was typed.

    Attributes:
        profile: file or name of a shipped profile.
        quality: file or name of a shipped quality table; empty: the one that fits the profile.
        policies: names or snapshot files; empty: every policy there is.
        workloads: unpredictable arrival processes by name; empty: the protocol's own.
        traces: trace files.
        deadline_s: deadline of every task, seconds.
        devices: devices with every tier.
        output_tokens: mean output tokens, for profiles but opt-*.
    """

    profile: str
    quality: str
    policies: tuple[str, ...]
    workloads: tuple[str, ...]
    traces: tuple[pathlib.Path, ...]
    deadline_s: float
    devices: int
    output_tokens: float


@dataclass(frozen=True)
class Inputs:
    """What was typed, read and checked.

    Attributes:
        setting: fleet, tasks, deadline.
        profile: the latency profile.
        quality: the quality table.
        contenders: policies by name, in the order of the tables.
        learned: name of the learned policy the headlines are about; empty if there is none.
        workloads: unpredictable arrival processes by name.
        traces: fitted traces by name.
        notes: what the reader of the report must know.
    """

    setting: Setting
    profile: LatencyProfile
    quality: QualityTable
    contenders: dict[str, Contender]
    learned: str
    workloads: tuple[str, ...]
    traces: dict[str, TraceModel]
    notes: tuple[str, ...]


def read_inputs(asked: Asked) -> Inputs:
    """Reads everything; raises InputError with one line per mistake, over all of it."""
    problems: list[str] = []
    profile_path = _shipped("profile", "profiles", asked.profile, problems)
    quality_path = _quality_path(asked, profile_path, problems)
    quality = _parsed_quality(quality_path, problems)
    profile = _parsed_profile(profile_path, quality, problems)
    workloads = _workloads(asked.workloads, problems)
    traces = _traces(asked.traces, problems)
    if problems or profile is None or quality is None or profile_path is None:
        raise InputError("\n".join(problems))
    setting = _setting(asked, profile, quality)
    notes: list[str] = []
    contenders = _contenders(asked, setting, profile_path, problems, notes)
    if problems:
        raise InputError("\n".join(problems))
    ours = [name for name, each in contenders.items() if each.kind == "learned"]
    first = next((name for name in ours if name.startswith("dqn")), ours[0] if ours else "")
    return Inputs(setting, profile, quality, contenders, first, workloads, traces, tuple(notes))


def _shipped(option: str, folder: str, name: str, problems: list[str]) -> pathlib.Path | None:
    """Returns the file a path or a shipped name stands for; appends the known ones if neither."""
    path = pathlib.Path(name)
    if path.is_file():
        return path
    shipped = project_root() / folder / f"{name}.toml"
    if not path.suffix and len(path.parts) == 1 and shipped.is_file():
        return shipped
    known = ", ".join(_shipped_names(folder))
    problems.append(f"--{option}: no file and no shipped name {name!r}; known: {known}")
    return None


def _shipped_names(folder: str) -> list[str]:
    return sorted(path.stem for path in (project_root() / folder).glob("*.toml"))


def _quality_path(
    asked: Asked, profile: pathlib.Path | None, problems: list[str]
) -> pathlib.Path | None:
    """Returns the quality file asked for, or the shipped one that the profile is named after."""
    if asked.quality:
        return _shipped("quality", "quality", asked.quality, problems)
    if profile is None:
        return None
    known = _shipped_names("quality")
    for name in known:
        if profile.stem == name or profile.stem.startswith(f"{name}-"):
            return project_root() / "quality" / f"{name}.toml"
    problems.append(
        f"--quality: needed, none of the shipped ones ({', '.join(known)}) fits {profile.name}"
    )
    return None


def _parsed_quality(path: pathlib.Path | None, problems: list[str]) -> QualityTable | None:
    if path is None:
        return None
    try:
        return parse_quality(_text(path), str(path))
    except InvalidFileError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror or error}")
    return None


def _parsed_profile(
    path: pathlib.Path | None, quality: QualityTable | None, problems: list[str]
) -> LatencyProfile | None:
    """Reads the profile; it must have the tiers of the quality table, costs rising with quality."""
    if path is None:
        return None
    tiers = tuple(next(iter(quality.quality.values()))) if quality is not None else ()
    try:
        return parse_profile(_text(path), str(path), tiers)
    except InvalidFileError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror or error}")
    return None


def _text(path: pathlib.Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


def _workloads(names: Sequence[str], problems: list[str]) -> tuple[str, ...]:
    problems.extend(
        f"--workload: unknown workload {name!r}; known: {', '.join(SCENARIOS)}"
        for name in names
        if name not in SCENARIOS
    )
    return tuple(dict.fromkeys(names)) or UNPREDICTABLE


def _traces(paths: Sequence[pathlib.Path], problems: list[str]) -> dict[str, TraceModel]:
    models: dict[str, TraceModel] = {}
    for path in paths:
        try:
            models[path.stem] = fit_trace(read_trace(path))
        except (InvalidFileError, WorkloadError) as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror or error}")
    return models


def _setting(asked: Asked, profile: LatencyProfile, quality: QualityTable) -> Setting:
    tasks = [
        Task(name, asked.deadline_s, expected_output_tokens=asked.output_tokens)
        for name in quality.quality
    ]
    tiers = tuple(next(iter(quality.quality.values())))
    try:
        return shared_fleet_setting(
            profile.name,
            profile,
            quality,
            tiers=tiers,
            device_count=asked.devices,
            deadline_s=asked.deadline_s,
            lengths=default_lengths(profile, tasks),
        )
    except InvalidFileError as error:
        raise InputError(str(error)) from None


def _contenders(
    asked: Asked,
    setting: Setting,
    profile: pathlib.Path,
    problems: list[str],
    notes: list[str],
) -> dict[str, Contender]:
    """Returns the policies asked for, or all; the yardsticks always."""
    catalog = setting.catalog
    names: list[str] = list(yardsticks(catalog))
    snapshots: list[pathlib.Path] = []
    shipped = sorted((project_root() / "policies").glob(f"{profile.stem}*{SNAPSHOT_SUFFIX}"))
    for name in asked.policies:
        if name.endswith(SNAPSHOT_SUFFIX):
            snapshots.append(pathlib.Path(name))
        elif name in LEARNED:
            found = [path for path in shipped if _is_of(path, name)]
            snapshots.extend(found)
            if not found:
                problems.append(
                    f"--policy: {name} needs a snapshot and none is shipped for {profile.stem}; "
                    "give its file"
                )
        else:
            names.append(name)
    if not asked.policies:
        names, snapshots = list(baseline_names(catalog)), shipped
    found_baselines: dict[str, Contender] = {}
    for name in names:
        try:
            found_baselines[name] = baseline(name, catalog)
        except (UnknownPolicyError, MissingSnapshotError):
            known = ", ".join(known_policies(catalog))
            problems.append(
                f"--policy: unknown policy {name!r}; known: {known}, or a *{SNAPSHOT_SUFFIX} file"
            )
        except LookupError as error:
            problems.append(f"--policy: {error}")
    found = _in_order(found_baselines, baseline_names(catalog))
    for path in snapshots:
        refused = problems if asked.policies else notes
        _add_snapshot(found, path, setting, refused)
    if not any(each.kind == "learned" for each in found.values()) and not problems:
        notes.append("no learned policy was evaluated: give a snapshot with --policy")
    return found


def _in_order(found: dict[str, Contender], order: Sequence[str]) -> dict[str, Contender]:
    """Returns policies in the registry's order, others behind."""
    names = [name for name in order if name in found]
    names += [name for name in found if name not in names]
    return {name: found[name] for name in names}


def _is_of(path: pathlib.Path, policy: str) -> bool:
    """Returns whether a shipped snapshot's file name is that of a policy."""
    return (".dqn-paper" in path.name) == (policy == "dqn-paper")


def _add_snapshot(
    found: dict[str, Contender], path: pathlib.Path, setting: Setting, problems: list[str]
) -> None:
    try:
        contenders = learned(path.read_bytes(), setting.catalog, str(path))
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror or error}")
        return
    except SnapshotError as error:
        problems.append(str(error))
        return
    if contenders[0].name in found:
        # A second snapshot of the same policy goes by its file's name.
        contenders = [each.renamed(contenders[0].name, path.stem) for each in contenders]
    found |= {each.name: each for each in contenders}
