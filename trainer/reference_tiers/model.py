"""Sizes and construction of the reference tiers (OPT architecture)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from transformers import OPTConfig, OPTForCausalLM

from trainer.reference_tiers.tokenizer import BOS_ID, EOS_ID, PAD_ID, CharTokenizer

MAX_POSITIONS = 64
"""Positions of every tier: the longest prompt plus the longest answer plus the end token fit."""


class UnknownTierError(ValueError):
    """A tier name that does not exist; the text lists those that do."""


@dataclasses.dataclass(frozen=True, slots=True)
class TierConfig:
    """Shape and training budget of one tier.

    Attributes:
        hidden_size: Width of the residual stream.
        layer_count: Decoder layers.
        head_count: Attention heads; divides ``hidden_size``.
        step_count: Optimizer steps of the training run.
        batch_size: Examples per optimizer step, all tasks mixed.
    """

    hidden_size: int
    layer_count: int
    head_count: int
    step_count: int
    batch_size: int


TIERS: Mapping[str, TierConfig] = {
    "small": TierConfig(96, 2, 4, 3000, 128),
    "medium": TierConfig(160, 3, 5, 3000, 128),
    "large": TierConfig(192, 8, 6, 4000, 128),
}
"""The three tiers by name, in order of quality."""


def tier_config(name: str) -> TierConfig:
    """Looks a tier up.

    Raises:
        UnknownTierError: No such tier; the text lists the known ones.
    """
    try:
        return TIERS[name]
    except KeyError:
        raise UnknownTierError(f"tier: unknown tier {name!r}; known tiers: {', '.join(TIERS)}") from None


def build_model(tier: TierConfig, tokenizer: CharTokenizer) -> OPTForCausalLM:
    """Builds an untrained tier; torch's global random state decides the weights."""
    config = OPTConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=tier.hidden_size,
        word_embed_proj_dim=tier.hidden_size,
        ffn_dim=4 * tier.hidden_size,
        num_hidden_layers=tier.layer_count,
        num_attention_heads=tier.head_count,
        max_position_embeddings=MAX_POSITIONS,
        dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    return OPTForCausalLM(config)
