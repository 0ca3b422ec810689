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
        muon_learning_rate: Peak learning rate of the weight matrices; wide layers want less.
        hardest_level: Where the curriculum of each task ends for this tier. 0.2 M parameters can
            learn all of it, so what a tier is taught, not only its size, sets its quality.
    """

    hidden_size: int
    layer_count: int
    head_count: int
    step_count: int
    batch_size: int
    muon_learning_rate: float
    hardest_level: Mapping[str, int]


TIERS: Mapping[str, TierConfig] = {
    "small": TierConfig(
        hidden_size=96,
        layer_count=2,
        head_count=4,
        step_count=1500,
        batch_size=128,
        muon_learning_rate=0.02,
        hardest_level={"reverse": 8, "sort": 8, "addition": 5, "recall": 8},
    ),
    "medium": TierConfig(
        hidden_size=160,
        layer_count=3,
        head_count=5,
        step_count=1500,
        batch_size=128,
        muon_learning_rate=0.02,
        hardest_level={"reverse": 9, "sort": 9, "addition": 6, "recall": 9},
    ),
    "large": TierConfig(
        hidden_size=288,
        layer_count=4,
        head_count=6,
        step_count=1700,
        batch_size=128,
        muon_learning_rate=0.012,
        hardest_level={"reverse": 10, "sort": 10, "addition": 7, "recall": 10},
    ),
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
        raise UnknownTierError(
            f"tier: unknown tier {name!r}; known tiers: {', '.join(TIERS)}"
        ) from None


def build_model(tier: TierConfig, tokenizer: CharTokenizer) -> OPTForCausalLM:
    """Builds an untrained tier; torch's global random state decides the weights.

    Plain matrix products for attention: torch's fused CPU kernel takes several times longer
    backwards at these lengths.
    """
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
    config._attn_implementation = "eager"
    return OPTForCausalLM(config)
