"""Property tests with fresh draws, round after round (`make fuzz`).

A round runs every property test once, each with its own number of examples. Rounds go on until one
of two bounds is met: the time or the number of rounds. A counterexample becomes an `@example` line
of its test, which every later run of the suite draws first; the caller mends and commits it.
Arguments that cannot be written down (`st.data()`) stay in Hypothesis' own folder, `.hypothesis`,
and come back with the next rounds until they pass.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

from services.local.launch import tied_command

END_VARIABLE = "TIERCEL_FUZZ_END"
"""Environment variable: wall time (seconds since 1970) after which no further test starts."""

_PATCHES = Path(".hypothesis/patches")
_DRAWN = re.compile(r"generate phase.*\n.*\n\s+- (\d+) passing, (\d+) failing")
_STATISTICS = re.compile(r"^=+ Hypothesis Statistics", re.MULTILINE)
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


def run_round(seed: int, end_s: float, paths: list[str]) -> tuple[int, int, set[str], int]:
    """Runs one round.

    Returns:
        Test cases that passed and failed, names of the tests that failed, and pytest's exit code.
    """
    command = [
        sys.executable, "-m", "pytest", "-q", "-m", "hypothesis", "--hypothesis-profile=fuzz",
        f"--hypothesis-seed={seed}", "--hypothesis-show-statistics", *paths,
    ]  # fmt: skip
    environment = {**os.environ, END_VARIABLE: str(end_s)}
    result = subprocess.run(
        tied_command(command), capture_output=True, text=True, check=False, env=environment
    )
    passed = failed = 0
    for found in _DRAWN.finditer(result.stdout):
        passed, failed = passed + int(found[1]), failed + int(found[2])
    if result.returncode not in (0, 5):
        print(_STATISTICS.split(result.stdout)[0] + result.stderr)
    return passed, failed, set(_FAILED.findall(result.stdout)), result.returncode


def keep_examples(known: set[Path]) -> list[str]:
    """Writes new counterexamples into their tests; returns the files that changed."""
    changed: list[str] = []
    for patch in sorted(set(_PATCHES.glob("*.patch")) - known):
        named = re.findall(r"^\+\+\+ (?:b/)?(?:\./)?(\S+)", patch.read_text(), re.MULTILINE)
        applied = subprocess.run(["git", "apply", "--recount", str(patch)], check=False)
        if applied.returncode:
            print(f"could not write the examples of {patch}")
            continue
        for name in named:
            path = Path(name)
            text = path.read_text()
            if not re.search(r"^from hypothesis import .*\bexample\b", text, re.MULTILINE):
                text = text.replace(
                    "from hypothesis import ", "from hypothesis import example, ", 1
                )
                path.write_text(text)
        ruff = [sys.executable, "-m", "ruff"]
        subprocess.run([*ruff, "check", "-q", "--fix", "--select", "I", *named], check=False)
        subprocess.run([*ruff, "format", "-q", *named], check=False)
        changed += named
    return changed


def main() -> int:
    """Runs the rounds, keeps what fails, says what was run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="start nothing after this")
    parser.add_argument("--rounds", type=int, default=20, help="at most so many rounds")
    parser.add_argument("paths", nargs="*", help="test files or folders; all without one")
    arguments = parser.parse_args()
    started_s = time.time()
    end_s = started_s + arguments.seconds
    total = failed_count = rounds = bad_rounds = 0
    failed_tests: set[str] = set()
    kept: list[str] = []
    while rounds < arguments.rounds and time.time() < end_s:
        known = set(_PATCHES.glob("*.patch"))
        seed = random.SystemRandom().randrange(2**32)
        passed, failed, tests, code = run_round(seed, end_s, arguments.paths)
        if code not in (0, 1, 5):  # neither passed, failed nor stopped by the clock
            print(f"pytest ended with {code}")
            return code
        rounds += 1
        bad_rounds += code == 1
        total, failed_count, failed_tests = (
            total + passed,
            failed_count + failed,
            failed_tests | tests,
        )
        print(
            f"round {rounds}: seed {seed}, {passed + failed:,} examples, "
            f"{len(tests)} tests failed, {time.time() - started_s:.0f} s",
            flush=True,
        )
        kept += keep_examples(known)
    print(
        f"{rounds} rounds, {total + failed_count:,} examples in {time.time() - started_s:.0f} s; "
        f"failed: {', '.join(sorted(failed_tests)) or 'none'}"
    )
    if kept:
        print(
            f"examples added to {', '.join(sorted(set(kept)))}: mend what they found, commit both"
        )
    return 1 if bad_rounds or not total + failed_count else 0


if __name__ == "__main__":
    raise SystemExit(main())
