"""Measuring a card: the plan, the fit, and what happens where something does not fit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from trainer.profiling.gpu.decoder import OPT_SHAPES, DecoderShape, Iteration
from trainer.profiling.gpu.machine import DeviceMemoryError
from trainer.profiling.gpu.measure import Limits, MeasurementError, measure, plan

GIB = 2**30


class FakeMachine:
    """A card whose iterations take what a linear profile says, with a limit to its memory."""

    def __init__(self, *, weights_gib: float = 100.0, cached_tokens: int = 10**9) -> None:
        self.weights_gib = weights_gib
        self.cached_tokens = cached_tokens

    def load(self, shape: DecoderShape) -> DecoderShape:
        """Takes the weights' room away."""
        self.weights_gib -= shape.parameter_count * 2 / GIB
        if self.weights_gib < 0:
            raise DeviceMemoryError
        return shape

    def iteration_s(self, model: DecoderShape, work: Iteration) -> float:
        """Costs in proportion to the layers."""
        if work.batch * work.cached_tokens > self.cached_tokens:
            raise DeviceMemoryError
        unit = 1e-4 * model.layer_count
        return unit * (1.0 + 0.01 * work.batch + 0.005 * work.admitted_tokens)

    def together_s(self, parts: Sequence[tuple[DecoderShape, Iteration]]) -> float:
        """Takes 0.8 of the turns."""
        return 0.8 * sum(self.iteration_s(model, work) for model, work in parts)

    def memory_bytes(self) -> int | None:
        """80 GiB."""
        return 80 * GIB

    def bytes_per_value(self) -> int:
        """bf16."""
        return 2

    def describe(self) -> str:
        """Nothing real."""
        return "fake"


def test_the_fit_finds_the_costs_of_the_card() -> None:
    """Every parameter comes back, without error, and tiers side by side give their ratio."""
    found = measure(FakeMachine(), OPT_SHAPES, name="fake")
    large = found.profile.tiers["large"]
    assert large.step_s == pytest.approx(32e-4)
    assert large.per_sequence_s == pytest.approx(32e-6)
    assert large.per_prompt_token_s == pytest.approx(16e-6)
    assert found.fits["large"].largest_error < 1e-6
    assert [each.ratio for each in found.together] == pytest.approx([0.8] * 4)


def test_every_tier_and_kind_is_measured() -> None:
    """The plan holds decode alone, prompts alone and both, up to the limits and no further."""
    found = measure(FakeMachine(), OPT_SHAPES, name="fake", limits=Limits(16, 600))
    for tier in OPT_SHAPES:
        points = found.points[tier]
        assert {point.kind for point in points} == {"decode", "prompt", "both"}
        assert max(point.work.batch for point in points) == 16
        assert max(point.work.admitted_tokens for point in points) == 512


def test_a_short_context_bounds_the_plan() -> None:
    """No iteration is longer than the positions a shape has."""
    shape = DecoderShape(1, 32, 2, position_count=256)
    assert max(work.cached_tokens for work in plan(shape, Limits())) <= 256


def test_what_does_not_fit_is_named_and_smaller_ones_go_on() -> None:
    """Out of memory at a batch lowers the tier's limits; the tier keeps its profile."""
    notes: list[str] = []
    found = measure(
        FakeMachine(cached_tokens=9000),
        {"small": OPT_SHAPES["small"]},
        name="fake",
        on_note=notes.append,
    )
    assert notes[0] == (
        "small: out of memory at batch 32 at 512 tokens of context; going on with smaller ones"
    )
    small = found.profile.tiers["small"]
    assert small.max_batch == 16
    assert small.step_s == pytest.approx(12e-4)
    assert all(p.work.batch * p.work.cached_tokens <= 9000 for p in found.points["small"])


def test_a_tier_whose_weights_do_not_fit_is_left_out() -> None:
    """The others are measured; the note names the tier and its size."""
    notes: list[str] = []
    found = measure(FakeMachine(weights_gib=4.0), OPT_SHAPES, name="f", on_note=notes.append)
    assert list(found.profile.tiers) == ["small", "medium"]
    assert notes == ["large: its 12.4 GiB of weights do not fit beside the others; left out"]


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (FakeMachine(weights_gib=0.0), "no tier's weights fit"),
        (FakeMachine(cached_tokens=100), "no tier could be measured"),
    ],
)
def test_nothing_to_measure_is_one_clear_error(machine: FakeMachine, message: str) -> None:
    """A card too small for anything says what is missing."""
    with pytest.raises(MeasurementError, match=message):
        measure(machine, OPT_SHAPES, name="fake")


def test_a_tier_with_too_few_points_is_left_out() -> None:
    """Where only short contexts fit, no fit is made, and the note says of which tier."""
    notes: list[str] = []
    tiers = {"small": OPT_SHAPES["small"]}
    with pytest.raises(MeasurementError):
        measure(FakeMachine(cached_tokens=100), tiers, name="f", on_note=notes.append)
    assert notes[-1].startswith("small: 1 iterations of 1 kinds are too few for a fit")


def test_room_for_keys_and_values_is_what_the_weights_leave() -> None:
    """90 % of the memory without the weights, shared evenly, in tokens of each tier."""
    found = measure(FakeMachine(), OPT_SHAPES, name="fake")
    weights = sum(shape.parameter_count * 2 for shape in OPT_SHAPES.values())
    share = (0.9 * 80 * GIB - weights) / 3
    assert found.profile.tiers["large"].max_kv_tokens == int(share / (2 * 32 * 4096 * 2))
