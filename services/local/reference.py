"""Facts about the reference tiers' mesh: its files, tasks and scorable examples."""

from __future__ import annotations

import pathlib

from services.common.mesh_settings import TaskSettings
from trainer.reference_tiers import tasks as reference_tasks
from trainer.reference_tiers.tokenizer import CHARACTERS
from trainer.shipped import PROFILES, QUALITY, shipped

DEFAULT_DEADLINE_S = 0.5
"""Deadline of requests that bring none, until a measurement on this machine sets a better one."""
PREFIX_TASKS = {"rev:": "reverse", "sort:": "sort", "add:": "addition", "get:": "recall"}
"""Prompts of the reference tiers name their task."""
EXAMPLE_PROMPT = "sort:hgcafde="
EXAMPLE = f"tiercel generate '{EXAMPLE_PROMPT}'"


def shipped_profile() -> pathlib.Path:
    """Latency profile of the reference tiers, measured on one machine when they were trained."""
    return shipped(PROFILES, "reference.toml")


def shipped_quality() -> pathlib.Path:
    """Quality table of the reference tiers, measured through a live endpoint."""
    return shipped(QUALITY, "reference.toml")


def task_entries(deadline_s: float = DEFAULT_DEADLINE_S) -> tuple[TaskSettings, ...]:
    """Settings of the four reference tasks."""
    return tuple(
        TaskSettings(
            name=name,
            default_deadline_s=round(deadline_s, 4),
            default_max_output_tokens=reference_tasks.MAX_ANSWER_CHARS + 2,
            expected_output_tokens=expected_output_tokens(name),
        )
        for name in reference_tasks.task_names()
    )


def expected_output_tokens(task: str) -> float:
    """Mean answer length of a task in characters, plus the token that ends it."""
    examples = reference_tasks.eval_set(task, 200, seed=0)
    return round(sum(len(each.answer) for each in examples) / len(examples) + 1, 2)


def example_pools(count: int, seed: int) -> dict[str, list[dict[str, str]]]:
    """Held-out prompts with their right answers per task, as a load spec takes them."""
    return {
        name: [
            {"text": each.prompt, "answer": each.answer}
            for each in reference_tasks.eval_set(name, count, seed)
        ]
        for name in reference_tasks.task_names()
    }


def even_mix() -> dict[str, float]:
    """All reference tasks in equal shares."""
    return dict.fromkeys(reference_tasks.task_names(), 1.0)


def task_of_prompt(prompt: str) -> str:
    """Returns the task that a prompt of the reference tiers names; empty for any other prompt."""
    return next((task for prefix, task in PREFIX_TASKS.items() if prompt.startswith(prefix)), "")


def prompt_problem(prompt: str, task: str) -> str:
    """Says why the reference tiers cannot answer a prompt; empty if they can."""
    outside = sorted(set(prompt) - set(CHARACTERS))
    shown = " ".join(repr(each) for each in outside[:5])
    what = "this mesh serves the reference tiers, toys that read nothing but"
    if outside:
        return f"{what} the characters {CHARACTERS} (not {shown}). What works: {EXAMPLE}"
    if not task:
        prefixes = ", ".join(PREFIX_TASKS)
        return f"{what} prompts that begin with one of {prefixes}. What works: {EXAMPLE}"
    return ""
