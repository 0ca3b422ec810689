"""Does one snapshot serve fleets and ladders that it never saw? Beside one trained for each.

    python -m trainer.research.transfer --record docs/results/transfer.md

The worlds are 1 to 64 devices, two and four tiers, a ladder whose steps cost less, and tiers that
were measured on a CPU. To train for many devices takes hours: beyond `--trained-up-to` there is no
trained snapshot beside.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from router.catalog import parse_quality
from router.profile import parse_profile
from trainer.evaluation.facts import usable_cores
from trainer.evaluation.jobs import Context, Runner
from trainer.evaluation.policies import baseline, learned
from trainer.evaluation.seeds import evaluation_seeds
from trainer.learning.offline.config import Budget
from trainer.research.studies import add_study_options
from trainer.research.transfer.study import (
    SHIPPED,
    TRAINED,
    Found,
    Trial,
    details,
    found_of,
    key_of,
    summary,
    trained_for,
    trials,
)
from trainer.research.transfer.worlds import DEVICES, World, worlds_of
from trainer.research.tuning import (
    TuningError,
    add_profile_options,
    profile_of,
    run_command,
)
from trainer.shipped import POLICIES, PROFILES, QUALITY, shipped
from trainer.simulation.simulate import PolicySpec


def page(found: Sequence[Found], policies: Sequence[str], command: str, training: str) -> str:
    """Returns the document."""
    return f"""# One snapshot in many worlds

For readers who ask whether a policy must be trained for their fleet. The shipped snapshot was
trained for {DEVICES} devices with the three tiers of OPT. Here it serves fleets of other sizes and
other ladders of tiers. Cells are share in time / performance. A load is a share of what the
smallest tier would carry in full batches. Worlds that are not named by their number of devices have
{DEVICES}, and the reference tiers two.

| world | what differs |
|---|---|
| two tiers | the smallest and the largest |
| four tiers | one more, between the two smallest: their costs' geometric means, qualities' means |
| flat ladder | a tier costs over the smallest only the root of what it costs there |
| reference tiers | costs and qualities measured on a CPU, other tasks, a deadline of 0.2 s |

{training} "Within 2 %" is judged beyond the 95 % interval over the seeds.

From `{command}`.

{summary(found, policies)}
## Case by case

{details(found, policies)}"""


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    found = argparse.ArgumentParser(prog="python -m trainer.research.transfer", description=__doc__)
    add_profile_options(found)
    found.add_argument("--snapshot", type=Path, help="the policy; else that shipped for opt-a100")
    found.add_argument("--world", action="append", metavar="NAME", help="only this; repeatable")
    found.add_argument("--trained-up-to", type=int, default=8, metavar="DEVICES")
    found.add_argument("--budget-s", type=float, default=240.0, help="of each training")
    found.add_argument("--rounds", type=int, help="of each training, instead of what time allows")
    found.add_argument("--snapshots", type=Path, default=Path("build/transfer"))
    add_study_options(found, "price,static-small", "beside the snapshots")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, compares, writes."""
    given = sys.argv[1:] if argv is None else list(argv)
    return run_command(lambda: _run(parser().parse_args(given), given))


def _chosen(asked: argparse.Namespace) -> list[World]:
    """Returns the worlds that are asked for."""
    measured = (
        parse_profile(shipped(PROFILES, "reference.toml").read_text("utf-8"), "reference"),
        parse_quality(shipped(QUALITY, "reference.toml").read_text("utf-8"), "reference"),
    )
    worlds = worlds_of(*profile_of(asked), measured)
    known = [world.name for world in worlds]
    unknown = [name for name in asked.world or () if name not in known]
    if unknown:
        raise TuningError(f"--world {unknown[0]!r} is not known; known: {', '.join(known)}")
    return [world for world in worlds if world.name in (asked.world or known)]


def _run(asked: argparse.Namespace, given: Sequence[str]) -> None:
    if asked.seeds < 1 or asked.requests < 1 or not asked.budget_s > 0.0 or asked.workers < 0:
        raise TuningError("--seeds and --requests from 1, --budget-s above 0, --workers from 0")
    if asked.rounds is not None and asked.rounds < 1:
        raise TuningError("--rounds must be at least 1")
    worlds = _chosen(asked)
    file = asked.snapshot or shipped(POLICIES, "opt-a100.safetensors")
    beside = tuple(name for name in asked.policies.split(",") if name)
    budget = Budget(seconds=asked.budget_s, rounds=asked.rounds)
    settings = {world.name: world.setting() for world in worlds}
    specs: dict[str, PolicySpec] = {}
    jobs: list[Trial] = []
    for world in worlds:
        setting = settings[world.name]
        own = {SHIPPED: learned(file.read_bytes(), setting.catalog, str(file))[0].spec}
        if world.devices <= asked.trained_up_to:
            blob = trained_for(world, asked.snapshots, budget, _say)
            own[TRAINED] = learned(blob, setting.catalog, world.name)[0].spec
        own |= {name: baseline(name, setting.catalog).spec for name in beside}
        specs |= {key_of(name, world.name): spec for name, spec in own.items()}
        jobs += trials(world, tuple(own), evaluation_seeds(asked.seeds), asked.requests)

    def show(text: str, done: float, total: float) -> None:
        _say(f"{text} {100.0 * done / total:.0f} %")

    with Runner(Context(settings, specs), asked.workers or usable_cores(), show) as runner:
        rows = runner.run("cases", jobs)
    found = [found_of([row for row in rows if row["world"] == world.name]) for world in worlds]
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    long = f"{asked.rounds} rounds" if asked.rounds else f"{asked.budget_s:g} s"
    training = f"Each training beside it takes {long}, up to {asked.trained_up_to} devices."
    command = shlex.join(["python", "-m", "trainer.research.transfer", *given])
    text = page(found, (SHIPPED, TRAINED, *beside), command, training)
    if asked.record:
        asked.record.write_text(text, encoding="utf-8")
    print(text)


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
