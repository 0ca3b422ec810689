"""Prints the largest difference of logits between the serving engine and ``transformers``.

Run by its test inside ``.venv-triton``: ``compare_engine.py deploy/triton small``.
"""

from __future__ import annotations

import pathlib
import random
import sys

import torch
from transformers import OPTForCausalLM

STEP_COUNT = 40
SLOT_COUNT = 5


def main(triton: pathlib.Path, tier: str) -> None:
    """Admits, decodes and releases at random, and checks every logit on the way."""
    sys.path.insert(0, str(triton / "common"))
    from reference_engine import SlotDecoder

    torch.set_num_threads(1)
    folder = triton / "reference" / tier / "1"
    decoder = SlotDecoder(folder, SLOT_COUNT)
    model = OPTForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rng = random.Random(1)
    rows: list[list[int]] = []
    worst = 0.0
    for _ in range(STEP_COUNT):
        free = SLOT_COUNT - len(rows)
        if rows:
            tokens = [rng.randrange(3, 40) for _ in rows]
            logits = decoder.step(tokens)
            for row, token in zip(rows, tokens, strict=True):
                row.append(token)
            worst = max(worst, difference(model, rows, logits))
        if free and rng.random() < 0.6:
            entering = [
                [rng.randrange(3, 40) for _ in range(rng.randint(1, 20))]
                for _ in range(rng.randint(1, free))
            ]
            worst = max(worst, difference(model, entering, decoder.prefill(entering)))
            rows.extend(entering)
        while rows and (rng.random() < 0.3 or max(map(len, rows)) > 50):
            longest = max(range(len(rows)), key=lambda row: len(rows[row]))
            leaving = longest if len(rows[longest]) > 50 else rng.randrange(len(rows))
            decoder.release(leaving)
            last = rows.pop()
            if leaving < len(rows):
                rows[leaving] = last
    print(worst)


@torch.inference_mode()
def difference(model: OPTForCausalLM, rows: list[list[int]], logits: torch.Tensor) -> float:
    """Largest difference between ``logits`` and those of whole forward passes over ``rows``."""
    expected = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in rows])
    return float((expected - logits).abs().max())


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
