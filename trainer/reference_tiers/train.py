"""Trains the reference tiers: ``python -m trainer.reference_tiers.train --tier all``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import random
import sys
import time

import torch
from transformers import OPTForCausalLM

from trainer.reference_tiers.evaluation import evaluate
from trainer.reference_tiers.model import TIERS, TierConfig, build_model, tier_config
from trainer.reference_tiers.tasks import TASKS, Example, Split, Task
from trainer.reference_tiers.tokenizer import EOS_ID, PAD_ID, CharTokenizer

IGNORED_LABEL = -100
MICRO_BATCH_SIZE = 64
TASK_SHARES = {"reverse": 2, "sort": 3, "addition": 4, "recall": 2}
"""Shares of the tasks in a training batch; addition and sort are learned slowest."""


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Everything of a run that is not the tier's shape.

    Attributes:
        seed: Decides weights, examples and their order.
        thread_count: Torch threads; the result differs in the last bits between counts.
        adam_learning_rate: Peak learning rate of embeddings, biases and norms (AdamW).
        warmup_steps: Steps of linear warm-up; then the rate falls linearly to zero.
        curriculum_share: Share of the run over which harder levels open one after another.
        evaluation_interval: Steps between two evaluations.
        evaluation_examples: Held-out examples per task in an evaluation on the way.
        final_examples: Held-out examples per task in the last evaluation.
        bfloat16: Multiplies matrices in bfloat16 (weights and optimizer stay float32).
    """

    seed: int = 1
    thread_count: int = 1
    adam_learning_rate: float = 2e-3
    warmup_steps: int = 50
    curriculum_share: float = 0.3
    evaluation_interval: int = 250
    evaluation_examples: int = 100
    final_examples: int = 1000
    bfloat16: bool = True


def draw_level(rng: random.Random, task: Task, hardest: int, opened: float) -> int:
    """Draws a training level.

    Args:
        rng: Source of randomness.
        task: Says where the levels begin.
        hardest: Where they end.
        opened: Share of the way from the easiest to the hardest that is open, 0 to 1.

    Returns:
        A level, uniform over those that are open.
    """
    top = task.easiest_level + round(opened * (hardest - task.easiest_level))
    return rng.randint(task.easiest_level, top)


def make_batch(
    rng: random.Random, tokenizer: CharTokenizer, tier: TierConfig, opened: float
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Draws one batch of training examples, cut into micro-batches of similar length.

    Args:
        rng: Source of the examples.
        tokenizer: Encodes them.
        tier: Says how many examples, and how hard they get.
        opened: How much of the curriculum is open, 0 (easiest level only) to 1.

    Returns:
        Pairs of token ids and labels, each of shape (micro-batch, length), right-padded; labels are
        the *next* token at answer positions and ``IGNORED_LABEL`` elsewhere.
    """
    names = rng.choices(list(TASK_SHARES), list(TASK_SHARES.values()), k=tier.batch_size)
    examples = [
        TASKS[name].sample(
            rng, Split.TRAIN, draw_level(rng, TASKS[name], tier.hardest_level[name], opened)
        )
        for name in names
    ]
    examples.sort(key=lambda each: len(each.prompt) + len(each.answer))
    return [
        _encode(examples[start : start + MICRO_BATCH_SIZE], tokenizer)
        for start in range(0, tier.batch_size, MICRO_BATCH_SIZE)
    ]


def _encode(examples: list[Example], tokenizer: CharTokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(each.prompt) + len(each.answer) for each in examples)
    input_ids = torch.full((len(examples), longest), PAD_ID, dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    for row, example in enumerate(examples):
        prompt, answer = tokenizer.encode(example.prompt), tokenizer.encode(example.answer)
        ids = [*prompt, *answer, EOS_ID]
        input_ids[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        labels[row, len(prompt) - 1 : len(ids) - 1] = torch.tensor(ids[len(prompt) :])
    return input_ids, labels


def learning_rate_factor(step: int, step_count: int, warmup_steps: int) -> float:
    """Factor on the peak learning rate: linear warm-up, then linear decay to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (step_count - step) / max(1, step_count - warmup_steps))


def make_optimizers(
    model: OPTForCausalLM, config: TrainingConfig, tier: TierConfig
) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices of the layers, AdamW for everything else."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = ".layers." in name and parameter.ndim == 2
        (matrices if is_matrix else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=tier.muon_learning_rate, weight_decay=0.01),
        torch.optim.AdamW(
            others, lr=config.adam_learning_rate, betas=(0.9, 0.98), weight_decay=0.0
        ),
    ]


def train_step(
    model: OPTForCausalLM,
    batch: list[tuple[torch.Tensor, torch.Tensor]],
    optimizers: list[torch.optim.Optimizer],
    bfloat16: bool,
) -> float:
    """Takes one optimizer step; returns the mean loss over all answer tokens of the batch."""
    token_count = sum(int((labels != IGNORED_LABEL).sum()) for _, labels in batch)
    total = 0.0
    for input_ids, labels in batch:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(input_ids=input_ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1),
            labels.flatten(),
            ignore_index=IGNORED_LABEL,
            reduction="sum",
        )
        torch.autograd.backward(loss / token_count)
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total / token_count


def train_tier(name: str, config: TrainingConfig, out: pathlib.Path, tier: TierConfig) -> None:
    """Trains one tier; writes weights (float16), config, tokenizer and log into one folder.

    Args:
        name: The tier's name.
        config: Seed, rates and intervals.
        out: Folder to write into; made when missing.
        tier: Shape and budget.
    """
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.thread_count)
    rng = random.Random(f"tiercel-train-{name}-{config.seed}")
    tokenizer = CharTokenizer()
    model = build_model(tier, tokenizer)
    optimizers = make_optimizers(model, config, tier)
    out.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    log = _Log(name, out / "training_log.jsonl", tier.step_count)
    log.write(
        kind="start",
        tier=name,
        parameter_count=sum(each.numel() for each in model.parameters()),
        tier_config=dataclasses.asdict(tier),
        training_config=dataclasses.asdict(config),
        torch=torch.__version__,
    )
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    losses: list[float] = []
    for step in range(tier.step_count):
        factor = learning_rate_factor(step, tier.step_count, config.warmup_steps)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
        opened = min(1.0, (step + 1) / (config.curriculum_share * tier.step_count))
        batch = make_batch(rng, tokenizer, tier, opened)
        losses.append(train_step(model, batch, optimizers, config.bfloat16))
        done = step + 1
        if done % config.evaluation_interval == 0 and done < tier.step_count:
            scores = evaluate(model, tokenizer, config.evaluation_examples).scores
            log.progress(done, sum(losses) / len(losses), scores, time.monotonic() - started_s)
            losses.clear()
            _save(model, tokenizer, out)
    _save(model, tokenizer, out)
    result = evaluate(model, tokenizer, config.final_examples)
    log.progress(
        tier.step_count,
        sum(losses) / max(1, len(losses)),
        result.scores,
        time.monotonic() - started_s,
    )
    log.write(
        kind="final", scores=result.scores, by_level=result.by_level, examples=config.final_examples
    )


def _save(model: OPTForCausalLM, tokenizer: CharTokenizer, out: pathlib.Path) -> None:
    """Saves a float16 copy: half the size, and the scores do not change measurably."""
    half = build_model_like(model).half()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(out)
    tokenizer.save(out)
    (out / "generation_config.json").unlink(missing_ok=True)


def build_model_like(model: OPTForCausalLM) -> OPTForCausalLM:
    """An untrained model of the same shape, made without touching the global random state."""
    state = torch.get_rng_state()
    try:
        return OPTForCausalLM(model.config)
    finally:
        torch.set_rng_state(state)


class _Log:
    """Prints progress and keeps it as JSON lines."""

    def __init__(self, tier: str, path: pathlib.Path, step_count: int) -> None:
        self._tier, self._path, self._step_count = tier, path, step_count
        path.write_text("")

    def write(self, **record: object) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def progress(self, step: int, loss: float, scores: dict[str, float], elapsed_s: float) -> None:
        rate = step / elapsed_s
        left_s = math.ceil((self._step_count - step) / rate)
        shown = " ".join(f"{task} {value:.3f}" for task, value in scores.items())
        print(
            f"{self._tier} {step}/{self._step_count} loss {loss:.4f} {shown} "
            f"{rate:.2f} steps/s, {left_s // 60}:{left_s % 60:02d} left",
            flush=True,
        )
        self.write(
            kind="progress",
            step=step,
            loss=round(loss, 5),
            scores=scores,
            elapsed_s=round(elapsed_s, 1),
        )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Trains the reference tiers.")
    parser.add_argument("--tier", choices=[*TIERS, "all"], default="all", help="tier to train")
    parser.add_argument("--seed", type=int, default=1, help="seed of weights and examples")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--steps", type=int, help="optimizer steps instead of the tier's own")
    parser.add_argument("--no-bf16", action="store_true", help="multiply in float32")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/reference_tiers"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Trains the tiers named on the command line; each gets its own folder under ``--out``."""
    options = _parse(arguments)
    if options.threads < 1 or (options.steps is not None and options.steps < 1):
        print("--threads and --steps: must be at least 1", file=sys.stderr)
        return 2
    config = TrainingConfig(
        seed=options.seed, thread_count=options.threads, bfloat16=not options.no_bf16
    )
    for name in TIERS if options.tier == "all" else [options.tier]:
        tier = tier_config(name)
        if options.steps is not None:
            tier = dataclasses.replace(tier, step_count=options.steps)
        train_tier(name, config, options.out / name, tier)
    return 0


if __name__ == "__main__":
    sys.exit(main())
