"""Wrong inputs for everything that reads a file or a stored record (`make fuzz`).

Each input is accepted or refused by one of its reader's own errors, within bounded time and memory.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import random
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzzing.readers import Reader, readers

KEPT = Path(__file__).parent / "kept" / "files"
"""Inputs that once found a defect, in a folder per reader; every run reads them first."""
MOST_CPU_S = 3.0
"""Longest time of one input, CPU seconds; none is larger than a megabyte."""
MOST_MEMORY_BYTES = 300_000_000
"""Most memory that one input may take beyond what was there."""
_MOST_SHRINKS = 300
_MOST_FOUND = 10


@dataclass
class Tally:
    """What came of the inputs of one reader."""

    count: int = 0
    accepted: int = 0
    slowest_s: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def folder_of(reader: Reader) -> str:
    """Returns the name of the folder of its kept inputs."""
    return "".join(c if c.isalnum() else "-" for c in reader.name).strip("-")


def verdict(reader: Reader, data: bytes, tally: Tally | None = None) -> tuple[str, str]:
    """Reads an input; returns the kind of what is wrong with how it ended, and more of it."""
    used_bytes = _peak_bytes()
    started_s = time.process_time()
    error = ""
    try:
        reader.read(data)
    except reader.errors as expected:
        error = type(expected).__name__
    except Exception as unexpected:
        where = traceback.extract_tb(unexpected.__traceback__)[-1]
        kind = f"{type(unexpected).__name__} in {Path(where.filename).name}:{where.name}"
        return kind, traceback.format_exc(limit=-6)
    took_s, grown_bytes = time.process_time() - started_s, _peak_bytes() - used_bytes
    if tally is not None:
        tally.accepted += not error
        tally.errors[error] += bool(error)
        tally.slowest_s = max(tally.slowest_s, took_s)
    if took_s > MOST_CPU_S:
        return "slow", f"{took_s:.1f} s of CPU"
    if grown_bytes > MOST_MEMORY_BYTES:
        return "large", f"{grown_bytes} bytes of memory"
    return "", ""


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def shrunk(data: bytes, kind: str, verdict_of: Callable[[bytes], str]) -> bytes:
    """Returns a smaller input with the same kind of verdict."""
    tries = 0
    step = max(1, len(data) // 2)
    while step:
        start = 0
        while start < len(data) and tries < _MOST_SHRINKS:
            tries += 1
            less = data[:start] + data[start + step :]
            if verdict_of(less) == kind:
                data = less
            else:
                start += step
        step //= 2
    return data


def kept(reader: Reader) -> Iterator[bytes]:
    """Yields inputs that once found a defect."""
    for path in sorted((KEPT / folder_of(reader)).glob("*")):
        yield path.read_bytes()


def keep(reader: Reader, data: bytes) -> str:
    """Keeps an input that found a defect; returns its name."""
    name = hashlib.sha256(data).hexdigest()[:8]
    place = KEPT / folder_of(reader)
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(data)
    return name


def fuzz(
    reader: Reader, *, count: int, rng: random.Random, end_s: float, keeps: bool = True
) -> Tally:
    """Reads `count` wrong inputs, the kept ones first.

    Args:
        reader: what reads.
        count: how many, at most.
        rng: source of every choice.
        end_s: reads no more after this, by the monotonic clock.
        keeps: True writes what finds a defect into the folder of kept inputs.
    """
    tally = Tally()
    found: set[str] = set()
    for number, seed in enumerate(reader.seeds):
        problem = verdict(reader, seed, tally)[0]
        if not number and not problem and not tally.accepted:
            # What is made of one that is refused is refused before most of the reader has run.
            problem = f"refused by {', '.join(tally.errors)}"
        if problem:
            tally.problems.append(f"{reader.name}: a right input: {problem}")
    waiting = list(kept(reader))
    while tally.count < count and time.monotonic() < end_s and len(found) < _MOST_FOUND:
        data = waiting.pop() if waiting else reader.change(rng.choice(reader.seeds), rng)
        tally.count += 1
        kind, more = verdict(reader, data, tally)
        if not kind or kind in found:
            continue
        found.add(kind)
        small = shrunk(data, kind, lambda less: verdict(reader, less)[0])
        name = keep(reader, small) if keeps else "not kept"
        tally.problems.append(f"{reader.name} ({name}, {len(small)} bytes): {kind}\n{more}")
    return tally


def table(tallies: dict[str, Tally]) -> str:
    """Returns what came of each reader's inputs, as a table."""
    lines = [
        "| reader | inputs | accepted | slowest, CPU s | refused by |",
        "|---|---|---|---|---|",
    ]
    for name, tally in tallies.items():
        errors = ", ".join(f"{error} {number}" for error, number in tally.errors.items() if number)
        lines.append(
            f"| {name} | {tally.count:,} | {tally.accepted:,} | {tally.slowest_s:.3f} | {errors} |"
        )
    return "\n".join(lines)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the log and numpy's warnings to themselves: thousands of inputs are wrong."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.getLogger().setLevel(level)


def counts_of(found: Sequence[Reader], count: int) -> list[int]:
    """Returns how many inputs each reader gets of `count`: fewer where each takes longer."""
    shares = [1.0 / reader.cost for reader in found]
    return [max(20, round(count * share / sum(shares))) for share in shares]


def main() -> int:
    """Runs the long form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--count", type=int, default=20_000, help="inputs per reader, over its cost"
    )
    parser.add_argument("--seconds", type=float, default=3_600.0, help="start nothing after this")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--reader", default="", help="only readers of such names (an expression)")
    arguments = parser.parse_args()
    started_s = time.monotonic()
    end_s = started_s + arguments.seconds
    print(f"files: seed {arguments.seed}", flush=True)
    tallies: dict[str, Tally] = {}
    short: list[str] = []
    with tempfile.TemporaryDirectory() as name, quiet():
        every = readers(Path(name))
        chosen = [each for each in every if re.search(arguments.reader, each.name)]
        if not chosen:
            parser.error(f"--reader: there are {', '.join(each.name for each in every)}")
        for place, reader in enumerate(chosen):
            count = max(200, arguments.count // reader.cost)
            # Readers share the time: none is left out because others took it.
            now_s = time.monotonic()
            tally = tallies[reader.name] = fuzz(
                reader,
                count=count,
                rng=random.Random(f"{arguments.seed} {reader.name}"),
                end_s=now_s + (end_s - now_s) / (len(chosen) - place),
            )
            if tally.count < count and not tally.problems:
                short.append(reader.name)
            print(
                f"{time.monotonic() - started_s:6.0f} s  {reader.name}: {tally.count:,} inputs,"
                f" {len(tally.problems)} problems",
                flush=True,
            )
    print(table(tallies))
    problems = [problem for tally in tallies.values() for problem in tally.problems]
    for problem in problems:
        print(problem)
    if short:
        print(f"fewer inputs than asked for, the time was up: {', '.join(short)}")
    total = sum(tally.count for tally in tallies.values())
    print(
        f"{total:,} inputs of {len(tallies)} readers in {time.monotonic() - started_s:.0f} s,"
        f" seed {arguments.seed}: {len(problems)} problems"
    )
    return 1 if problems or not total else 0


if __name__ == "__main__":
    sys.exit(main())
