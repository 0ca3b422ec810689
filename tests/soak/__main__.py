"""The soak: `make soak`, or `python -m tests.soak --seconds 300`.

First crowds of connections on one router (two minutes), then a whole mesh at 60 % of what it holds
while clients, endpoints and policies come and go. Says one line every sixtieth of the time,
and ends before it where something runs away; `--record` writes docs/results/soak.json and
docs/soak.md. Ctrl-C ends it with all that it started, and says what was wrong until then.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shlex
import sys
import tempfile

from services.local.errors import CommandError
from services.local.run import run_owning_children
from tests.soak import page
from tests.soak.crowds import FULL, measure
from tests.soak.hour import soak
from tests.soak.verdict import verdicts

_CROWDS_S, _AROUND_S = 150.0, 60.0
"""What the crowds take, and what start, search for the rate and end of the mesh take, about."""


def main() -> int:
    """Runs what was asked for; fails if something did not end as it should."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3_600.0, help="length, without the crowds")
    parser.add_argument("--rps", type=float, default=0.0, help="rate [default: found]")
    parser.add_argument("--only", choices=("hour", "crowds"), help="one part alone")
    parser.add_argument("--record", action="store_true", help="write the results and the page")
    given = parser.parse_args()
    if not 10.0 <= given.seconds <= 86_400.0:
        parser.error(f"--seconds: must be from 10 to 86,400, got {given.seconds:g}")
    os.environ["TIERCEL_RUN_ROOT"] = str(pathlib.Path("build/soak").absolute())
    try:
        return run_owning_children(_run(given), _say)
    except CommandError as error:
        _say(str(error))
        return 1


async def _run(given: argparse.Namespace) -> int:
    parts = {"hour", "crowds"} if given.only is None else {given.only}
    about_s = ("crowds" in parts) * _CROWDS_S + ("hour" in parts) * (given.seconds + _AROUND_S)
    _say(f"about {about_s / 60.0:.0f} min; Ctrl-C ends it")
    bad, run, rows = [], None, []
    if "crowds" in parts:
        with tempfile.TemporaryDirectory(prefix="tiercel-soak-") as folder:
            rows = await measure(pathlib.Path(folder), FULL, _say)
        bad += page.complaints(rows)
    if "hour" in parts:
        run = await soak(given.seconds, given.rps, _say)
        bad += verdicts(run)
    if given.record:
        known = run if run is not None and run.windows else None
        page.keep(known, rows, shlex.join(("python", "-m", "tests.soak", *sys.argv[1:])))
    _say("not as it should be: " + ("; ".join(bad) or "nothing"))
    return 1 if bad else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
