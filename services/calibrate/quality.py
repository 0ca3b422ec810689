"""Quality of tiers: of live ones by questions with known answers, or by somebody's own scores."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tomli_w

from services.calibrate.lines import name_at, number_at, read_lines
from services.calibrate.probe import Sample, closed_loop
from services.calibrate.questions import Question
from services.calibrate.tiers import LiveTier, clients_of
from services.local.errors import CommandError

CONCURRENCY = 8
_Z95 = 1.959964
"""Of a normal law, 2.5 % lie beyond."""
_SLACK = 1e-9
OnAnswer = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """Scores of one tier's answers on one task.

    Attributes:
        total: Sum of the answers' scores, each 0 to 1; the right ones where there is no between.
        asked: Answers scored, at least 1.
        guess: Mean score that guessing gives.
    """

    total: float
    asked: int
    guess: float = 0.0

    @property
    def share(self) -> float:
        """Mean score."""
        return self.total / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean score after Wilson (1927), which holds near 0 and 1 too.

        Scores between 0 and 1 vary less than right and wrong with the same mean: for them it is
        wider than need be.
        """
        squared = _Z95 * _Z95 / self.asked
        middle = self.share + squared / 2.0
        spread = math.sqrt(squared * (self.share * (1.0 - self.share) + squared / 4.0))
        low, high = (middle - spread) / (1.0 + squared), (middle + spread) / (1.0 + squared)
        return (low if self.total else 0.0), (high if self.total < self.asked else 1.0)

    @property
    def is_told_from_guessing(self) -> bool:
        """Whether the interval leaves out what guessing gives."""
        return self.interval[0] > self.guess + _SLACK


Scores = Mapping[str, Mapping[str, Score]]


@dataclasses.dataclass(frozen=True)
class QualityMeasurement:
    """Scores by task and tier.

    Attributes:
        tiers: Tier names, lowest quality first; the last one is the standard.
        scores: Score by task and tier, of the tasks that say something.
        left_out: Why another task is not in the table, by task.
    """

    tiers: tuple[str, ...]
    scores: Scores
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, scores: Scores, stated: Sequence[str] = ()) -> QualityMeasurement:
        """Keeps the tasks on which the largest tier is told apart from guessing.

        Args:
            scores: Score by task and tier.
            stated: Tiers as somebody lists them, lowest quality first; else their mean scores rank
                them.

        Raises:
            CommandError: There is no such task.
        """
        found = dict.fromkeys(tier for row in scores.values() for tier in row)
        tiers = tuple(tier for tier in stated if tier in found)
        if set(tiers) != set(found):
            tiers = tuple(sorted(found, key=lambda tier: _mean_share(scores, tier)))
        left_out = {}
        for task, row in scores.items():
            largest = row.get(tiers[-1])
            if largest is None:
                left_out[task] = f"{tiers[-1]}, the largest tier, has no score"
            elif not largest.is_told_from_guessing:
                low, high = largest.interval
                left_out[task] = (
                    f"{tiers[-1]}, the largest tier, scored {largest.share:.3f} "
                    f"({low:.2f} to {high:.2f}) on {largest.asked}, guessing gives "
                    f"{largest.guess:.2f}"
                )
        kept = {task: row for task, row in scores.items() if task not in left_out}
        if not kept:
            said = "; ".join(f"{task}: {why}" for task, why in left_out.items())
            raise CommandError(
                f"nothing was told apart from guessing, so there is no table: {said}"
            )
        return cls(tiers, kept, left_out)

    def standardised(self, task: str, tier: str) -> float:
        """Mean score over that of the largest tier; 1.0 at most."""
        return min(1.0, self.scores[task][tier].share / self.scores[task][self.tiers[-1]].share)

    def to_toml(self, name: str, about: str) -> str:
        """The text of a quality file."""
        count = min(score.asked for row in self.scores.values() for score in row.values())
        document: dict[str, Any] = {"name": name, "source": "measured"}
        document |= {
            key: {
                task: {tier: cells[key] for tier, cells in row.items()}
                for task, row in self.to_json().items()
            }
            for key in ("quality", "raw", "low95", "high95")
        }
        return (
            f"# At least {count} answers per task and tier. {about}\n"
            "# quality = raw / raw of the largest tier; low95 and high95 bound the raw score.\n"
            f"{tomli_w.dumps(document)}"
        )

    def to_json(self) -> dict[str, dict[str, dict[str, float]]]:
        """By task and tier: ``quality``, ``raw``, ``low95``, ``high95`` and ``examples``."""
        return {
            task: {
                tier: {
                    "quality": round(self.standardised(task, tier), 4),
                    "raw": round(row[tier].share, 4),
                    "low95": round(row[tier].interval[0], 4),
                    "high95": round(row[tier].interval[1], 4),
                    "examples": row[tier].asked,
                }
                for tier in self.tiers
                if tier in row
            }
            for task, row in self.scores.items()
        }


def _mean_share(scores: Scores, tier: str) -> float:
    shares = [row[tier].share for row in scores.values() if tier in row]
    return sum(shares) / len(shares)


def read_scores(path: pathlib.Path) -> Scores:
    """Reads scores of answers, one JSON object a line, from any judge.

    Keys: ``task``, ``tier``, ``score`` from 0 to 1, and ``guess``, what guessing would score.
    Others are left alone.

    Raises:
        InputError: The file or a line is wrong; every mistake has its line.
    """

    def of_line(line: dict[str, Any]) -> tuple[str, str, float, float]:
        score, guess = number_at(line, "score", 0, 1), number_at(line, "guess", 0, 1, 0.0)
        return name_at(line, "task"), name_at(line, "tier"), score, guess

    return _summed(read_lines(path, of_line))


async def measure_quality(
    tiers: Sequence[LiveTier],
    questions: Sequence[Question],
    *,
    on_answer: OnAnswer = lambda tier: None,
) -> Scores:
    """Asks as `ask_tiers` does and scores the answers to the questions with a check.

    Raises:
        CommandError: An endpoint did not answer.
    """
    asked = [each for each in questions if each.check is not None]
    answers = await ask_tiers(tiers, asked, on_answer=on_answer)
    return _summed([_scored(tier, sample) for tier, sample in answers])


async def ask_tiers(
    tiers: Sequence[LiveTier],
    questions: Sequence[Question],
    *,
    on_answer: OnAnswer = lambda tier: None,
) -> list[tuple[str, Sample]]:
    """Asks every tier the same questions, one tier after the other.

    Args:
        tiers: Tiers to ask.
        questions: What to ask.
        on_answer: Gets the tier's name with every answer, for progress bars.

    Returns:
        Tier and answer: the tiers in order, the answers as they came.

    Raises:
        CommandError: An endpoint did not answer.
    """
    found = []
    async with clients_of(tiers) as clients:
        for tier in tiers:

            def count(_: Sample, name: str = tier.tier) -> None:
                on_answer(name)

            samples = await closed_loop(
                clients[tier.address], tier.model, questions, CONCURRENCY, on_sample=count
            )
            found += [(tier.tier, each) for each in samples]
    return found


def _scored(tier: str, sample: Sample) -> tuple[str, str, float, float]:
    question = sample.question
    assert question.check is not None
    return question.task, tier, float(question.check.is_right(sample.text)), question.check.guess


def _summed(found: Sequence[tuple[str, str, float, float]]) -> Scores:
    """Sums (task, tier, score, guess) of answers."""
    cells: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for task, tier, score, guess in found:
        cells.setdefault(task, {}).setdefault(tier, []).append((score, guess))
    return {
        task: {
            tier: Score(
                math.fsum(score for score, _ in each),
                len(each),
                math.fsum(guess for _, guess in each) / len(each),
            )
            for tier, each in row.items()
        }
        for task, row in cells.items()
    }
