"""The catalog: tiers, tasks and the quality of each tier on each task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from router.documents import parse_toml
from router.messages import shown
from router.types import InvalidFileError, Task, is_finite_number

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class QualityTable:
    """Quality of tiers on tasks, standardised: score / score of the largest tier, so largest = 1.0.

    Attributes:
        name: name of the table.
        source: where its numbers come from: published, measured or assumed.
        quality: quality per task name and tier name, 0 to 1 (a smaller tier may not exceed 1).
        raw: raw score per task name and tier name; empty if unknown.
    """

    name: str
    source: str
    quality: dict[str, dict[str, float]]
    raw: dict[str, dict[str, float]]


def parse_quality(text: str, origin: str) -> QualityTable:
    """Parses a quality file (TOML: name, source, [quality.TASK] tier = q, optional [raw.TASK]).

    Raises:
        InvalidFileError: with every mistake found.
    """
    document = parse_toml(text, origin)
    problems: list[str] = []
    tables: dict[str, dict[str, dict[str, float]]] = {"quality": {}, "raw": {}}
    for section in tables:
        rows = document.get(section, {})
        if not isinstance(rows, dict):
            rows = {}
            problems.append(f"{section}: must have only [{section}.TASK] tables")
        for task, row in rows.items():
            tables[section][task] = {}
            if not isinstance(row, dict):
                problems.append(f"{section}.{task}: must be a table (got {shown(row)})")
                continue
            for tier, value in row.items():
                if not is_finite_number(value) or not 0.0 <= value <= 1.0:
                    problems.append(
                        f"{section}.{task}.{tier}: must be from 0 to 1 (got {shown(value)})"
                    )
                    continue
                tables[section][task][tier] = float(value)
    if not tables["quality"] and not problems:
        problems.append("quality: must have at least one [quality.TASK] table")
    if problems:
        raise InvalidFileError(origin, problems)
    name, source = str(document.get("name", origin)), str(document.get("source", "assumed"))
    return QualityTable(name, source, tables["quality"], tables["raw"])


@dataclass(frozen=True)
class Catalog:
    """Tiers ordered by quality, tasks, and the quality matrix.

    Attributes:
        tiers: names, lowest quality first.
        tasks: the tasks.
        quality_KT: quality of tier t on task k, float64 [K, T].
    """

    tiers: tuple[str, ...]
    tasks: tuple[Task, ...]
    quality_KT: NDArray[np.float64]

    @classmethod
    def build(cls, tiers: tuple[str, ...], tasks: tuple[Task, ...], table: QualityTable) -> Catalog:
        """Builds the matrix; raises InvalidFileError naming every missing cell."""
        problems = [
            f"quality.{task.name}.{tier}: missing"
            for task in tasks
            for tier in tiers
            if tier not in table.quality.get(task.name, {})
        ]
        if problems:
            raise InvalidFileError(table.name, problems)
        rows = [[table.quality[task.name][tier] for tier in tiers] for task in tasks]
        return cls(tiers, tasks, np.array(rows, dtype=np.float64))

    def task_index(self, name: str) -> int:
        """Returns the index of a task; raises KeyError if unknown."""
        for index, task in enumerate(self.tasks):
            if task.name == name:
                return index
        raise KeyError(name)

    def tier_index(self, name: str) -> int:
        """Returns the index of a tier; raises KeyError if unknown."""
        try:
            return self.tiers.index(name)
        except ValueError:
            raise KeyError(name) from None
