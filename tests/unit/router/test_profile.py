"""Profile and quality files: read back what was written, name every mistake at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.catalog import Catalog, parse_quality
from router.profile import LatencyProfile, TierProfile, format_profile, parse_profile
from router.types import InvalidFileError, Task
from tests.unit.deploy.manifests import ROOT

TIERS = ("small", "medium", "large")
PROFILE = ROOT / "profiles" / "opt-a100.toml"

positive = st.floats(min_value=1e-6, max_value=10.0, allow_nan=False)


@given(step_s=positive, per_sequence_s=positive, per_prompt_token_s=positive, overhead_s=positive)
def test_a_written_profile_reads_back_the_same(
    step_s: float, per_sequence_s: float, per_prompt_token_s: float, overhead_s: float
) -> None:
    """Formatting and parsing a profile loses nothing, quotes and newlines included."""
    tier = TierProfile(step_s, per_sequence_s, per_prompt_token_s, 8, 512, overhead_s)
    larger = replace(tier, max_kv_tokens=4096, iteration_cv=0.25)
    tiers = {"large": tier, "larger": larger}
    profile = LatencyProfile("a", "measured", tiers, 'card "x"\nback\\slash', 1.7e9, 'by "hand"')
    assert parse_profile(format_profile(profile), "file") == profile


def test_every_mistake_of_a_profile_is_reported_at_once() -> None:
    """A profile with several mistakes yields one line for each, with file and key."""
    text = """
    name = ""
    source = "guessed"
    [tiers.small]
    step_s = 0.5
    per_sequence_s = -1
    per_prompt_token_s = nan
    colour = 1
    max_kv_tokens = 0
    iteration_cv = 3.5
    [tiers.large]
    step_s = 0.1
    """
    with pytest.raises(InvalidFileError) as caught:
        parse_profile(text, "p.toml", ("small", "medium", "large"))
    message = str(caught.value)
    for key in (
        "name:",
        "source:",
        "tiers.small.per_sequence_s:",
        "tiers.small.per_prompt_token_s:",
        "tiers.small.colour:",
        "tiers.small.max_kv_tokens: must be at least 1",
        "tiers.small.iteration_cv: must be at most 3",
        "tiers.large.per_sequence_s: missing",
        "tiers.medium: missing",
    ):
        assert f"p.toml: {key}" in message


def test_a_profile_that_does_not_say_when_it_was_measured_has_no_age() -> None:
    """Files of earlier versions load; others say when and how, and age."""
    old = parse_profile(PROFILE.read_text(), str(PROFILE))
    assert (old.measured_s, old.method, old.age_s(1e9)) == (None, "", None)
    text = PROFILE.read_text().replace(
        "[tiers.small]", 'measured_time = 2026-11-20T13:58:00.5+01:00\nmethod = "m"\n[tiers.small]'
    )
    new = parse_profile(text, "file")
    assert (new.measured_s, new.method) == (1_795_179_480.0, "m")
    assert new.age_s(1_795_179_540.0) == 60.0
    assert new.age_s(0.0) == 0.0
    assert new.scaled(2.0).measured_s == new.measured_s


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('measured_time = "2026-11-20"', "date and time with its offset"),
        ("measured_time = 2026-11-20", "date and time with its offset"),
        ("measured_time = 2026-11-20T12:00:00", "date and time with its offset"),
        ("measured_time = 1969-12-31T23:59:59Z", "within 1970 and 9999"),
        ("measured_time = 9999-12-31T23:59:59-01:00", "within 1970 and 9999"),
        ("method = 1", "method: must be a text"),
        (f'method = "{"m" * 201}"', "at most 200 characters"),
    ],
)
def test_when_and_how_it_was_measured_have_their_limits(line: str, problem: str) -> None:
    """A moment without its offset means another one on every machine."""
    text = PROFILE.read_text().replace("[tiers.small]", f"{line}\n[tiers.small]")
    with pytest.raises(InvalidFileError, match=problem):
        parse_profile(text, "p.toml")


def test_a_profile_without_a_spread_is_one_that_earlier_versions_read() -> None:
    """The key is written only where it says something; a stretched profile keeps it."""
    tier = TierProfile(0.01, 0.0, 0.0)
    assert "iteration_cv" not in format_profile(LatencyProfile("p", "measured", {"a": tier}))
    wide = replace(tier, iteration_cv=0.1)
    assert "iteration_cv = 0.1" in format_profile(LatencyProfile("p", "measured", {"a": wide}))
    assert wide.scaled(3.0).iteration_cv == 0.1


def test_a_larger_tier_may_not_be_cheaper_per_step() -> None:
    """Step costs that fall with quality are refused: the order of the tiers would be wrong."""
    slow = TierProfile(0.02, 0.0, 0.0)
    fast = TierProfile(0.01, 0.0, 0.0)
    text = format_profile(LatencyProfile("p", "measured", {"small": slow, "large": fast}))
    with pytest.raises(InvalidFileError, match="lower tier small"):
        parse_profile(text, "p.toml", ("small", "large"))


@pytest.mark.parametrize("text", ["", "tiers = 3", "name = [", "[tiers]"])
def test_what_is_no_profile_is_refused(text: str) -> None:
    """A file without tiers, or without TOML, is an InvalidFileError like any other."""
    with pytest.raises(InvalidFileError):
        parse_profile(text, "p.toml")


def test_unloaded_latency_follows_its_formula() -> None:
    """One request alone takes overhead + prompt + tokens * (step + sequence)."""
    tier = TierProfile(0.010, 0.001, 0.0001, overhead_s=0.002)
    assert tier.unloaded_latency_s(100, 8) == pytest.approx(0.002 + 0.01 + 8 * 0.011)
    assert tier.scaled(2.0).unloaded_latency_s(100, 8) == pytest.approx(2 * 0.1)


@pytest.mark.parametrize("number", ["inf", "nan", "1" + "0" * 400])
def test_number_that_no_float_can_hold_is_refused(number: str) -> None:
    """TOML can write it; no latency is that."""
    text = format_profile(LatencyProfile("p", "measured", {"a": TierProfile(0.5, 0.25, 0.0)}))
    with pytest.raises(InvalidFileError, match=r"per_sequence_s: must be a finite|not fit 64 bits"):
        parse_profile(text.replace("0.25", number), "p.toml")


def test_quality_outside_its_range_is_refused_with_its_cell() -> None:
    """Each cell outside 0 to 1 is named."""
    text = "[quality.sort]\nsmall = 1.5\nlarge = true\n"
    with pytest.raises(InvalidFileError) as caught:
        parse_quality(text, "q.toml")
    assert "q.toml: quality.sort.small" in str(caught.value)
    assert "q.toml: quality.sort.large" in str(caught.value)


def test_the_catalog_names_missing_cells() -> None:
    """A task without a quality for a tier cannot be served: the missing cells are listed."""
    table = parse_quality("name='t'\n[quality.sort]\nsmall = 0.5\n", "q.toml")
    with pytest.raises(InvalidFileError) as caught:
        Catalog.build(("small", "large"), (Task("sort", 1.0), Task("add", 1.0)), table)
    assert caught.value.problems == [
        "quality.sort.large: missing",
        "quality.add.small: missing",
        "quality.add.large: missing",
    ]


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
