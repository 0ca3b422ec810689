"""Scores a tier on held-out examples with greedy decoding."""

from __future__ import annotations

import collections
import dataclasses

import torch
from transformers import OPTForCausalLM

from trainer.reference_tiers.tasks import MAX_ANSWER_CHARS, TASKS, Example, eval_set, score
from trainer.reference_tiers.tokenizer import EOS_ID, CharTokenizer

BATCH_SIZE = 128


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluation:
    """Exact-match scores.

    Attributes:
        scores: Mean score per task.
        by_level: Mean score per task and difficulty level (as text, for JSON).
    """

    scores: dict[str, float]
    by_level: dict[str, dict[str, float]]


def evaluate(
    model: OPTForCausalLM, tokenizer: CharTokenizer, examples_per_task: int, seed: int = 0
) -> Evaluation:
    """Decodes held-out examples greedily and scores them.

    Args:
        model: The tier; its training mode is left as it was.
        tokenizer: The tier's tokenizer.
        examples_per_task: Held-out examples per task.
        seed: Which held-out examples.

    Returns:
        Mean exact match per task and per level.
    """
    was_training = model.training
    model.eval()
    scores, by_level = {}, {}
    for name in TASKS:
        results = collections.defaultdict(list)
        examples = eval_set(name, examples_per_task, seed)
        for group in _by_prompt_length(examples):
            texts = greedy(model, tokenizer, [each.prompt for each in group])
            for example, text in zip(group, texts, strict=True):
                results[example.level].append(score(example.answer, text))
        flat = [value for values in results.values() for value in values]
        scores[name] = sum(flat) / len(flat)
        by_level[name] = {
            str(level): round(sum(values) / len(values), 4)
            for level, values in sorted(results.items())
        }
    model.train(was_training)
    return Evaluation(scores, by_level)


def _by_prompt_length(examples: list[Example]) -> list[list[Example]]:
    """Groups of one prompt length each, so that a batch needs no padding."""
    groups: dict[int, list[Example]] = collections.defaultdict(list)
    for example in examples:
        groups[len(example.prompt)].append(example)
    return [
        group[start : start + BATCH_SIZE]
        for group in groups.values()
        for start in range(0, len(group), BATCH_SIZE)
    ]


@torch.inference_mode()
def greedy(model: OPTForCausalLM, tokenizer: CharTokenizer, prompts: list[str]) -> list[str]:
    """Completes prompts of equal length with the likeliest token at each step.

    Args:
        model: The tier.
        tokenizer: Its tokenizer.
        prompts: Texts of one common length.

    Returns:
        One completion per prompt, cut at the end token.
    """
    ids_BT = torch.tensor([tokenizer.encode(prompt) for prompt in prompts])
    cache, step_ids, written = None, ids_BT, []
    for _ in range(MAX_ANSWER_CHARS + 1):
        output = model(input_ids=step_ids, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        step_ids = output.logits[:, -1:].argmax(-1)
        written.append(step_ids)
        if len(written) > 1 and bool((torch.cat(written, 1) == EOS_ID).any(1).all()):
            break
    rows = torch.cat(written, 1).tolist()
    return [tokenizer.decode(row[: row.index(EOS_ID)] if EOS_ID in row else row) for row in rows]
