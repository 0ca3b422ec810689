"""Quality of live tiers on the reference tasks, by exact match."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tomli_w

from services.calibrate.probe import Question, Sample, closed_loop
from services.calibrate.tiers import LiveTier
from services.common.triton.client import TritonClient
from trainer.reference_tiers import tasks as reference_tasks

CONCURRENCY = 8
OnAnswer = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """Exact matches of one tier on one task.

    Attributes:
        right: Answers that matched.
        asked: Questions asked, at least 1.
    """

    right: int
    asked: int

    @property
    def share(self) -> float:
        """Share of right answers."""
        return self.right / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share after Wilson (1927), which holds near 0 and 1 too."""
        # Imported here: every other command starts faster without scipy.
        from scipy.stats import binomtest

        found = binomtest(self.right, self.asked).proportion_ci(method="wilson")
        return float(found.low), float(found.high)


@dataclasses.dataclass(frozen=True)
class QualityMeasurement:
    """Scores by task and tier.

    Attributes:
        tiers: Tier names, lowest quality first; the last one is the standard.
        scores: Score by task and tier.
    """

    tiers: tuple[str, ...]
    scores: Mapping[str, Mapping[str, Score]]

    def standardised(self, task: str, tier: str) -> float:
        """Share of right answers over that of the largest tier; 1.0 at most."""
        largest = self.scores[task][self.tiers[-1]].share
        if tier == self.tiers[-1] or largest == 0:
            return 1.0
        return min(1.0, self.scores[task][tier].share / largest)

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
            f"# Exact match on at least {count} held-out examples per task and tier. {about}\n"
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
            }
            for task, row in self.scores.items()
        }


def questions(task: str, count: int, seed: int) -> list[Question]:
    """Held-out examples of a task."""
    limit = reference_tasks.MAX_ANSWER_CHARS + 2
    examples = reference_tasks.eval_set(task, count, seed)
    return [Question(task, each.prompt, each.answer, limit) for each in examples]


async def measure_quality(
    tiers: Sequence[LiveTier],
    *,
    example_count: int,
    seed: int = 0,
    on_answer: OnAnswer = lambda tier: None,
) -> QualityMeasurement:
    """Asks every tier the same held-out questions, one tier after the other.

    Args:
        tiers: Tiers to measure, lowest quality first.
        example_count: Questions per task and tier.
        seed: Which held-out questions.
        on_answer: Gets the tier's name with every answer, for progress bars.

    Raises:
        CommandError: An endpoint did not answer.
    """
    names = reference_tasks.task_names()
    asked = [each for name in names for each in questions(name, example_count, seed)]
    # Mixed lengths, as in real traffic; the order has no influence on greedy answers.
    random.Random(seed).shuffle(asked)
    scores: dict[str, dict[str, Score]] = {name: {} for name in names}
    async with contextlib.AsyncExitStack() as stack:
        clients = {
            address: await stack.enter_async_context(TritonClient(address))
            for address in dict.fromkeys(each.address for each in tiers)
        }
        for tier in tiers:

            def count(_: Sample, name: str = tier.tier) -> None:
                on_answer(name)

            samples = await closed_loop(
                clients[tier.address], tier.model, asked, CONCURRENCY, on_sample=count
            )
            for name in names:
                own = [each for each in samples if each.question.task == name]
                right = sum(_is_right(each) for each in own)
                scores[name][tier.tier] = Score(right, len(own))
            await asyncio.sleep(0)
    return QualityMeasurement(tuple(each.tier for each in tiers), scores)


def _is_right(sample: Sample) -> bool:
    return reference_tasks.score(sample.question.answer, sample.text) == 1.0
