"""Which iterations are measured, and what profile they make.

The profile's model of an iteration is linear in the batch and in the prompt tokens that join.
Decode alone, prompts alone and both together are measured at several batches, contexts and prompt
lengths and fitted to relative errors, so that the error left says what the linear model leaves out:
the growth of attention with the context, and the flat start of the prompt's cost.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from router.profile import LatencyProfile
from trainer.profiling.gpu.decoder import DecoderShape, Iteration
from trainer.profiling.gpu.machine import DeviceMemoryError, Machine
from trainer.profiling.latency_fit import Equation, Fit, FitError, fit_tier, ordered

FEWEST_POINTS = 4
"""One more than an iteration has costs."""
CONTEXTS = (128, 512)
"""Cached tokens of sequences that decode."""
PROMPTS = (32, 128, 512)
ADMITTED = (1, 4, 16, 32)
"""Prompts that join one iteration."""
MIXED = tuple(itertools.product((4, 16, 32), (1, 4)))
"""Running and admitted sequences of iterations that do both, at the first context."""
MIXED_PROMPT_TOKENS = 128
TOGETHER = Iteration(running=16, context_tokens=128)
"""What each tier does while others run beside it."""
MEMORY_SHARE = 0.9
"""Share of a card's memory for weights and cache; the rest is for activations and the engine."""

OnStep = Callable[[str, float], None]
OnNote = Callable[[str], None]


class MeasurementError(Exception):
    """Nothing could be measured; the message says why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far the measurement goes.

    Attributes:
        max_batch: most sequences in an iteration, >= 1.
        max_prompt_tokens: most prompt tokens that join one, >= 1.
    """

    max_batch: int = 64
    max_prompt_tokens: int = 4096


@dataclass(frozen=True, slots=True)
class Point:
    """One measured iteration.

    Attributes:
        work: the iteration.
        taken_s: its time, seconds.
    """

    work: Iteration
    taken_s: float

    @property
    def kind(self) -> str:
        """Decode, prompt, or both."""
        if not self.work.admitted:
            return "decode"
        return "both" if self.work.running else "prompt"

    @property
    def equation(self) -> Equation:
        """Its time as a sum of costs; an iteration alone has no overhead of a request in it."""
        return Equation(
            self.kind, (0.0, 1.0, self.work.batch, self.work.admitted_tokens), self.taken_s
        )


@dataclass(frozen=True, slots=True)
class Together:
    """Tiers at work at once on one device.

    Attributes:
        tiers: which.
        ratio: time of one iteration of each, by the sum of the times alone: 1 = they take turns,
            as profiles assume; less = they overlap; more = they hinder each other.
    """

    tiers: tuple[str, ...]
    ratio: float


@dataclass(frozen=True)
class Measurement:
    """A measured profile with what speaks for and against it.

    Attributes:
        profile: the profile, without a description.
        fits: how well it explains the points, per tier.
        points: what was measured, per tier.
        together: tiers side by side, not used for the fit.
    """

    profile: LatencyProfile
    fits: Mapping[str, Fit]
    points: Mapping[str, Sequence[Point]]
    together: Sequence[Together]


@dataclass
class _Room:
    """What has turned out not to fit: everything as large is left out."""

    limits: Limits
    failed: list[Iteration] = field(default_factory=list)

    def excludes(self, work: Iteration) -> bool:
        """Returns whether something no larger has failed already."""
        return any(
            failed.batch <= work.batch
            and failed.cached_tokens <= work.cached_tokens
            and failed.admitted_tokens <= work.admitted_tokens
            for failed in self.failed
        )


def plan(shape: DecoderShape, limits: Limits) -> list[Iteration]:
    """Returns the iterations to measure, small ones of a kind first."""
    sizes = [2**k for k in range(20) if 2**k <= limits.max_batch]
    works = [Iteration(batch, context) for context in CONTEXTS for batch in sizes]
    works += [Iteration(0, 0, admitted, tokens) for tokens in PROMPTS for admitted in ADMITTED]
    works += [Iteration(b, CONTEXTS[0], a, MIXED_PROMPT_TOKENS) for b, a in MIXED]
    return [
        work
        for work in works
        if work.batch <= limits.max_batch
        and work.admitted_tokens <= limits.max_prompt_tokens
        and work.cached_tokens <= shape.position_count
    ]


def measure(
    machine: Machine,
    shapes: Mapping[str, DecoderShape],
    *,
    name: str,
    limits: Limits = Limits(),
    on_step: OnStep = lambda text, share: None,
    on_note: OnNote = lambda text: None,
) -> Measurement:
    """Measures every tier alone, then tiers side by side; nothing else should use the device.

    Args:
        machine: the device.
        shapes: tiers, lowest quality first.
        name: name of the profile.
        limits: how far to go.
        on_step: gets what is measured now and the share of the work done.
        on_note: gets what had to be left out, and why.

    Raises:
        MeasurementError: no tier could be measured.
    """
    models = _load(machine, shapes, on_step, on_note)
    groups = [g for size in (2, 3) for g in itertools.combinations(models, size)]
    total = sum(len(plan(shapes[tier], limits)) for tier in models) + len(groups)
    steps = itertools.count()
    points: dict[str, list[Point]] = {}
    fits: dict[str, Fit] = {}
    for tier, model in models.items():
        room = _Room(limits)
        points[tier] = []
        for work in plan(shapes[tier], limits):
            on_step(f"{tier}: {_words(work)}", next(steps) / total)
            point = _try(machine, model, tier, work, room, on_note)
            if point is not None:
                points[tier].append(point)
        try:
            fits[tier] = fit_points(points[tier], room.limits)
        except MeasurementError as error:
            on_note(f"{tier}: {error}; left out")
    if not fits:
        raise MeasurementError("no tier could be measured; every reason is above")
    together = _side_by_side(machine, models, groups, lambda t: on_step(t, next(steps) / total))
    fits = ordered(fits, list(fits))
    rooms = _kv_rooms(machine, {tier: shapes[tier] for tier in fits})
    tiers = {
        tier: dataclasses.replace(fit.profile, max_kv_tokens=rooms.get(tier))
        for tier, fit in fits.items()
    }
    kept = {tier: points[tier] for tier in fits}
    return Measurement(LatencyProfile(name, "measured", tiers), fits, kept, together)


def fit_points(points: Sequence[Point], limits: Limits) -> Fit:
    """Fits a tier's costs to relative errors; kinds of points count alike.

    Raises:
        MeasurementError: fewer points than parameters, none with a prompt, or no finite fit.
    """
    kinds = {point.kind for point in points}
    if len(points) < FEWEST_POINTS or len(kinds) < 2:
        raise MeasurementError(
            f"{len(points)} iterations of {len(kinds)} kinds are too few for a fit (--max-batch, "
            "--max-prompt-tokens)"
        )
    equations = [point.equation for point in points]
    try:
        return fit_tier(
            equations,
            equations,
            max_batch=limits.max_batch,
            max_prompt_tokens=limits.max_prompt_tokens,
        )
    except FitError as error:
        raise MeasurementError(str(error)) from None


def _load(
    machine: Machine, shapes: Mapping[str, DecoderShape], on_step: OnStep, on_note: OnNote
) -> dict[str, object]:
    """Loads every tier that fits beside the ones before it."""
    models: dict[str, object] = {}
    for tier, shape in shapes.items():
        on_step(f"{tier}: {shape.parameter_count / 1e6:.0f} M weights", 0.0)
        try:
            models[tier] = machine.load(shape)
        except DeviceMemoryError:
            size = shape.parameter_count * machine.bytes_per_value() / 2**30
            on_note(f"{tier}: its {size:.1f} GiB of weights do not fit beside the others; left out")
    if not models:
        raise MeasurementError("no tier's weights fit the device's memory")
    return models


def _try(
    machine: Machine, model: object, tier: str, work: Iteration, room: _Room, on_note: OnNote
) -> Point | None:
    """Measures a point unless it cannot fit; lowers the tier's limits where it does not."""
    if room.excludes(work):
        return None
    try:
        return Point(work, machine.iteration_s(model, work))
    except DeviceMemoryError:
        room.failed.append(work)
        on_note(f"{tier}: out of memory at {_words(work)}; going on with smaller ones")
    # The context that fails first is the longest: shorter ones were measured at this batch.
    if work.admitted:
        smaller = min(room.limits.max_prompt_tokens, max(1, work.admitted_tokens // 2))
        room.limits = dataclasses.replace(room.limits, max_prompt_tokens=smaller)
    else:
        smaller = min(room.limits.max_batch, max(1, work.batch // 2))
        room.limits = dataclasses.replace(room.limits, max_batch=smaller)
    return None


def _side_by_side(
    machine: Machine,
    models: Mapping[str, object],
    groups: Sequence[tuple[str, ...]],
    on_step: Callable[[str], None],
) -> list[Together]:
    """Compares tiers at once with the sum of their times alone; what does not fit is left out."""
    found = []
    for tiers in groups:
        on_step(" beside ".join(tiers))
        try:
            alone_s = sum(machine.iteration_s(models[tier], TOGETHER) for tier in tiers)
            both_s = machine.together_s([(models[tier], TOGETHER) for tier in tiers])
        except DeviceMemoryError:
            continue
        found.append(Together(tiers, both_s / alone_s))
    return found


def _kv_rooms(machine: Machine, shapes: Mapping[str, DecoderShape]) -> dict[str, int]:
    """Returns each tier's room for keys and values, tokens: an even share of what weights leave.

    There is none to return where the memory is not the device's own.
    """
    memory = machine.memory_bytes()
    if memory is None:
        return {}
    size = machine.bytes_per_value()
    weights = sum(shape.parameter_count for shape in shapes.values()) * size
    share = (MEMORY_SHARE * memory - weights) / len(shapes)
    rooms = {tier: int(share // s.kv_bytes_per_token(size)) for tier, s in shapes.items()}
    return {tier: room for tier, room in rooms.items() if room >= 1}


def _words(work: Iteration) -> str:
    parts = []
    if work.running:
        parts.append(f"batch {work.running} at {work.context_tokens} tokens of context")
    if work.admitted:
        parts.append(f"{work.admitted} prompts of {work.prompt_tokens} tokens")
    return " and ".join(parts)
