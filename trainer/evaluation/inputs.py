"""What the user names for an evaluation: profile, quality, policies, traces; checked at once."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from router.catalog import Catalog, QualityTable, parse_quality
from router.documents import LARGEST_DOCUMENT_BYTES, parse_json
from router.profile import LatencyProfile, parse_profile
from router.types import InvalidFileError, Task
from trainer.evaluation.entrants import entrants
from trainer.evaluation.policies import Contender, zeroed_name
from trainer.evaluation.report.study_tables import crosscheck_table
from trainer.evaluation.report.tables import Row
from trainer.evaluation.retrained import read_retrained, retrained_study
from trainer.evaluation.scenarios import SCENARIOS
from trainer.evaluation.suite import UNPREDICTABLE
from trainer.shipped import PROFILES, QUALITY, NotShippedError, find, shipped, shipped_names
from trainer.simulation.scenarios import default_lengths
from trainer.simulation.setting import OwnMesh, Setting
from trainer.simulation.workload import WorkloadError
from trainer.traces.fit import TraceModel, fit_trace
from trainer.traces.synthetic import STAND_INS, open_trace

PAPER_QUALITY = "opt"
PAPER_SETTING = ("opt-a100", PAPER_QUALITY, 0.4, 4)
"""Profile, quality table, deadline (seconds) and devices of arXiv 2401.07886, as far as it says."""


class EvaluationInputError(ValueError):
    """What was asked for cannot be evaluated; one line per mistake."""


@dataclass(frozen=True)
class Asked:
    """What was typed.

    Attributes:
        profile: file or name of a shipped profile.
        quality: file or name of a shipped quality table; empty: the one that fits the profile.
        policies: names or snapshot files; empty: every policy there is.
        workloads: unpredictable arrival processes by name; empty: the protocol's own.
        traces: trace files, or names of stand-ins.
        crosscheck: file of the cross-check's rows; None: not shown.
        retrained: file of the comparison with retrained policies; None: not shown.
        deadline_s: deadline of every task, seconds.
        devices: devices with every tier.
        output_tokens: mean output tokens, for profiles but opt-*.
        own: a mesh as its settings describe it, in place of the above that describe one; None:
            they do.
    """

    profile: str = "opt-a100"
    quality: str = ""
    policies: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    traces: tuple[pathlib.Path, ...] = ()
    crosscheck: pathlib.Path | None = None
    retrained: pathlib.Path | None = None
    deadline_s: float = 0.4
    devices: int = 4
    output_tokens: float = 8.0
    own: OwnMesh | None = None


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
        crosscheck: the cross-check's rows.
        retrained: the comparison with retrained policies, as a study.
        notes: what the reader of the report must know.
        is_papers: whether the setting is the one that the paper's claims are about.
    """

    setting: Setting
    profile: LatencyProfile
    quality: QualityTable
    contenders: dict[str, Contender]
    learned: str
    workloads: tuple[str, ...]
    traces: dict[str, TraceModel]
    crosscheck: tuple[Row, ...]
    retrained: dict[str, Any]
    notes: tuple[str, ...]
    is_papers: bool


def read_inputs(asked: Asked) -> Inputs:
    """Reads everything; raises EvaluationInputError with one line per mistake, over all of it."""
    problems: list[str] = []
    own = asked.own or _described(asked, problems)
    workloads = _workloads(asked.workloads, problems)
    traces = _traces(asked.traces, problems)
    checked = _crosscheck(asked.crosscheck, problems)
    compared = read_retrained(asked.retrained, problems)
    if problems or own is None:
        raise EvaluationInputError("\n".join(problems))
    setting = own.setting()
    notes = list(own.notes)
    contenders = entrants(asked.policies, setting.catalog, own.profile.name, problems, notes)
    if problems:
        raise EvaluationInputError("\n".join(problems))
    # The headlines are about a `dqn` if there is one: only that has a zeroed twin beside it.
    ours = [name for name, each in contenders.items() if each.kind == "learned"]
    first = next((name for name in ours if zeroed_name(name) in contenders), "")
    first = first or next(iter(ours), "")
    version = contenders[first].version if first else ""
    retrained = retrained_study(compared, setting.facts(), version, notes)
    return Inputs(
        setting,
        own.profile,
        own.quality,
        contenders,
        first,
        workloads,
        traces,
        checked,
        retrained,
        tuple(notes),
        _is_papers(asked),
    )


def described_mesh(asked: Asked) -> OwnMesh:
    """Returns the mesh that was typed; raises EvaluationInputError with one line per mistake."""
    problems: list[str] = []
    own = asked.own or _described(asked, problems)
    if own is None:
        raise EvaluationInputError("\n".join(problems))
    return own


def _described(asked: Asked, problems: list[str]) -> OwnMesh | None:
    """Returns the mesh that profile, quality table and numbers describe."""
    profile_path = _found("profile", PROFILES, asked.profile, problems)
    quality_path = _quality_path(asked, profile_path, problems)
    quality = _parsed_quality(quality_path, problems)
    profile = _parsed_profile(profile_path, quality, problems)
    if problems or profile is None or quality is None:
        return None
    tasks = tuple(
        Task(name, asked.deadline_s, expected_output_tokens=asked.output_tokens)
        for name in quality.quality
    )
    lengths = default_lengths(profile, tasks)
    tasks = tuple(replace(task, expected_output_tokens=lengths.output_mean) for task in tasks)
    tiers = tuple(next(iter(quality.quality.values())))
    try:
        catalog = Catalog.build(tiers, tasks, quality)
    except InvalidFileError as error:
        problems.append(str(error))
        return None
    return OwnMesh(profile.name, catalog, quality, profile, (tiers,) * asked.devices, lengths)


def _is_papers(asked: Asked) -> bool:
    """Returns whether the setting is the paper's: its models, tasks, deadline and devices."""
    said = (asked.profile, asked.quality or PAPER_QUALITY, asked.deadline_s, asked.devices)
    return asked.own is None and said == PAPER_SETTING


def _found(option: str, folder: str, name: str, problems: list[str]) -> pathlib.Path | None:
    """Returns the file a path or a shipped name stands for; appends the known ones if neither."""
    try:
        return find(folder, name)
    except NotShippedError as error:
        problems.append(f"--{option}: {error}")
        return None


def _quality_path(
    asked: Asked, profile: pathlib.Path | None, problems: list[str]
) -> pathlib.Path | None:
    """Returns the quality file asked for, or the shipped one that the profile is named after."""
    if asked.quality:
        return _found("quality", QUALITY, asked.quality, problems)
    if profile is None:
        return None
    known = shipped_names(QUALITY)
    for name in known:
        if profile.stem == name or profile.stem.startswith(f"{name}-"):
            return shipped(QUALITY, f"{name}.toml")
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
    with path.open("rb") as file:
        return file.read(LARGEST_DOCUMENT_BYTES + 1).decode("utf-8", "replace")


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
        if str(path) not in STAND_INS and not path.exists():
            known = ", ".join(STAND_INS)
            problems.append(f"--trace: no file and no stand-in {str(path)!r}; stand-ins: {known}")
            continue
        try:
            model = fit_trace(open_trace(path))
            # A stand-in's own name says in every table that it is synthetic.
            models[model.name if str(path) in STAND_INS else path.stem] = model
        except (InvalidFileError, WorkloadError) as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror or error}")
    return models


def _crosscheck(path: pathlib.Path | None, problems: list[str]) -> tuple[Row, ...]:
    """Returns the rows of a cross-check; appends what is wrong with its file."""
    if path is None:
        return ()
    try:
        rows = parse_json(_text(path), str(path))["crosscheck"]
        crosscheck_table(rows)
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror or error}")
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        written_by = "python -m trainer.research.crosscheck"
        problems.append(f"--crosscheck: {path} is not what `{written_by}` writes")
    else:
        return tuple(rows)
    return ()
