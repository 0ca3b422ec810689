"""The latency profiles that ship."""

from __future__ import annotations

import pytest

from router.profile import parse_profile
from tests.unit.deploy.manifests import ROOT

TIERS = ("small", "medium", "large")
PROFILE = ROOT / "profiles" / "opt-a100.toml"


def test_shipped_profile_is_valid_and_says_what_is_inferred() -> None:
    """opt-a100 parses, is ordered, and labels the tier that nobody published."""
    text = PROFILE.read_text()
    profile = parse_profile(text, PROFILE.name, TIERS)
    assert profile.source == "published"
    assert "inferred" in profile.description
    assert {tier.max_batch for tier in profile.tiers.values()} == {64}


@pytest.mark.parametrize(
    ("tier", "prompt", "output", "batch", "published_ms"),
    [
        # FasterTransformer's GPT guide, A100-80GB, FP16: end-to-end time of a whole batch.
        ("medium", 128, 8, 1, 36.76),
        ("large", 128, 8, 1, 98.29),
        ("medium", 128, 8, 8, 52.92),
        ("large", 128, 8, 8, 162.51),
        ("medium", 512, 32, 1, 135.85),
        ("large", 512, 32, 1, 384.70),
        ("medium", 512, 32, 64, 1036.21),
        ("large", 512, 32, 64, 3306.41),
    ],
)
def test_shipped_profile_meets_the_published_times(
    tier: str, prompt: int, output: int, batch: int, published_ms: float
) -> None:
    """Batches up to 8, and long requests at any batch, are met within 10 %."""
    costs = parse_profile(PROFILE.read_text(), PROFILE.name, TIERS).tiers[tier]
    steps_s = output * (costs.step_s + batch * costs.per_sequence_s)
    total_s = steps_s + batch * prompt * costs.per_prompt_token_s
    assert 1e3 * total_s == pytest.approx(published_ms, rel=0.10)
