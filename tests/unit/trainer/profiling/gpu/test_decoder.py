"""The OPT-shaped decoder: its size is OPT's, and its cache holds what a prompt left there."""

from __future__ import annotations

import pytest
import torch

from trainer.profiling.gpu.decoder import OPT_SHAPES, TINY_SHAPES, Decoder, Iteration

SHAPE = TINY_SHAPES["medium"]


def decoder() -> Decoder:
    """Returns a tiny decoder on the processor."""
    return Decoder(SHAPE, device=torch.device("cpu"), dtype=torch.float32, seed=3)


def run(model: Decoder, work: Iteration, tokens: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    """Runs one iteration."""
    return model.step(work, tokens, model.positions_of(work), cache)


@pytest.mark.parametrize(
    ("tier", "published"),
    [("small", 125_239_296), ("medium", 1_315_758_080), ("large", 6_658_473_984)],
)
def test_sizes_are_those_of_opt(tier: str, published: int) -> None:
    """The shapes have as many weights as the published checkpoints of 125M, 1.3B and 6.7B."""
    assert OPT_SHAPES[tier].parameter_count == published


def test_the_stated_size_is_the_real_one() -> None:
    """What the formula says is what the tensors hold."""
    assert decoder().parameter_count() == SHAPE.parameter_count


def test_a_decoded_token_continues_the_prompt() -> None:
    """Prompt, then one token from the cache, gives the logits of the longer prompt."""
    model = decoder()
    tokens = torch.arange(3 * 11).remainder(SHAPE.vocabulary_size).view(3, 11)
    whole = run(model, Iteration(0, 0, 3, 11), tokens.flatten(), model.new_cache(3, 11))
    cache = model.new_cache(3, 11)
    run(model, Iteration(0, 0, 3, 10), tokens[:, :10].flatten(), cache)
    continued = run(model, Iteration(3, 10), tokens[:, 10], cache)
    torch.testing.assert_close(continued, whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole[0], whole[1])


def test_sequences_of_one_iteration_do_not_see_each_other() -> None:
    """Prompts that join beside running sequences get what each would get alone."""
    model = decoder()
    first, second = torch.arange(6), torch.arange(20, 28)
    cache = model.new_cache(2, 8)
    run(model, Iteration(0, 0, 1, 6), first, cache)
    both = run(model, Iteration(1, 6, 1, 8), torch.cat([second, torch.tensor([9])]), cache)
    alone = run(model, Iteration(0, 0, 1, 8), second, model.new_cache(1, 8))
    longer = torch.cat([first, torch.tensor([9])])
    continued = run(model, Iteration(0, 0, 1, 7), longer, model.new_cache(1, 7))
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[1:], continued, rtol=1e-4, atol=1e-5)
