"""Wrong inputs for the parsers, led by what each newly reaches (`make fuzz-guided`).

Needs the package atheris (`pip install '.[fuzz]'`), which nothing else does. Each reader runs in a
process of its own, since the library ends it; new inputs come from the reader's own changes, and
those that reach new code become the next ones to change.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from services.local.launch import tied_command

_INSTRUMENTED = ["router", "services", "trainer", "tomllib", "json"]
_SPARE_S = 60.0
_LARGEST_BYTES = 1_000_000


def run_one(name: str, seconds: int, seed: int) -> None:
    """Fuzzes one reader for some time; does not return."""
    import atheris

    with atheris.instrument_imports(include=_INSTRUMENTED):
        from tests.fuzzing import files, readers

    folder = Path(tempfile.mkdtemp(prefix="tiercel-fuzz-"))
    reader = next(each for each in readers.readers(folder) if each.name == name)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate([*reader.seeds, *files.kept(reader)]):
        (corpus / str(number)).write_bytes(data)

    def changed(data: bytes, largest: int, chance: int) -> bytes:
        rng = random.Random(chance)
        try:
            made = reader.change(data if rng.random() < 0.8 else rng.choice(reader.seeds), rng)
        except Exception:  # it was changed beyond what its own changes understand
            made = reader.change(rng.choice(reader.seeds), rng)
        return made[:largest]

    def read(data: bytes) -> None:
        kind, more = files.verdict(reader, data)
        if kind:
            files.keep(reader, data)
            raise AssertionError(f"{kind}\n{more}")

    options = [
        f"-max_total_time={seconds}", f"-seed={seed % 2**31 or 1}", f"-max_len={_LARGEST_BYTES}",
        f"-artifact_prefix={folder}/", "-timeout=60", "-rss_limit_mb=2048",
        "-print_final_stats=1", str(corpus),
    ]  # fmt: skip
    with files.quiet():
        atheris.Setup([sys.argv[0], *options], read, custom_mutator=changed)
        atheris.Fuzz()


def main() -> int:
    """Runs every reader, or one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=1_800, help="shared by all readers")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--reader", default="", help="only readers of such names (an expression)")
    parser.add_argument("--one", default="", help="this reader alone, in this process")
    arguments = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("needs atheris: pip install --constraint requirements/constraints.txt '.[fuzz]'")
        return 2
    if arguments.one:
        run_one(arguments.one, arguments.seconds, arguments.seed)
    from tests.fuzzing.readers import readers

    with tempfile.TemporaryDirectory() as folder:
        names = [each.name for each in readers(Path(folder))]
    known = names
    names = [name for name in known if re.search(arguments.reader, name)]
    if not names:
        parser.error(f"--reader: there are {', '.join(known)}")
    share_s = max(1, arguments.seconds // len(names))
    failed: list[str] = []
    total = 0
    print(
        f"guided: seed {arguments.seed}, {share_s} s for each of {len(names)} readers", flush=True
    )
    for name in names:
        count, reached, problem = _in_a_process(name, share_s, arguments.seed)
        total += count
        print(f"{name}: {count:,} inputs, {reached} reached {problem}", flush=True)
        if problem:
            failed.append(name)
    print(f"{total:,} inputs of {len(names)} readers; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def _in_a_process(name: str, seconds: int, seed: int) -> tuple[int, str, str]:
    """Returns how many inputs a reader got, what they reached, and what it failed with."""
    command: list[Any] = [sys.executable, "-m", "tests.fuzzing.guided", "--one", name]
    command += ["--seconds", str(seconds), "--seed", str(seed)]
    limit_s = seconds * 3 + _SPARE_S
    with tempfile.TemporaryDirectory() as folder:  # the library ends the process before it tidies
        try:
            done = subprocess.run(
                tied_command(command), capture_output=True, text=True, errors="replace",
                check=False, timeout=limit_s, env={**os.environ, "TMPDIR": folder},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return 0, "?", f"did not end within {limit_s:g} s"
    said = done.stdout + done.stderr
    count = re.search(r"stat::number_of_executed_units:\s+(\d+)", said)
    reached = re.findall(r"\bcov: (\d+)", said)
    problem = "" if done.returncode == 0 else said[-3_000:]
    return int(count[1]) if count else 0, reached[-1] if reached else "?", problem


if __name__ == "__main__":
    sys.exit(main())
