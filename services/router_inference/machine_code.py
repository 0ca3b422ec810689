"""The compiled decision: read from its folder or made there before the router serves.

Once per machine and version a child process compiles, which takes some twenty seconds of a core;
every later start reads its result in a fraction of a second. Routers that start together wait for
the one that compiles. Whatever goes wrong, the router decides in plain Python, and says so.

`python -m services.router_inference.machine_code` does it beforehand (`make setup`, an image).
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

import numpy as np

from router.bound import Bind, BoundDecision, Rule, bind_plain
from router.compiled import cache_folder
from router.dqn.snapshot import Weights, zero_weights
from router.features import FEATURE_COUNT
from router.fleet import FleetArrays
from router.policies.dqn import PRICE_DEFAULTS_P
from router.policies.scores import Query
from router.policies.table import DQN, ROW
from services.common.log import Logger, get_logger

PATIENCE_S: Final = 180.0
"""How long a start waits for the compiler, or for another process that runs it."""
_PATIENCE_AHEAD_S: Final = 3600.0
"""The same where nothing but the code is waited for."""
_PROGRAM = """
import os, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
from router.entry import write_code
write_code(sys.argv[1])
"""
"""Compiles; ends when its input ends, which it does with the process that waits for the code."""
_POLL_S = 0.1
_TOLERANCE = 1e-9
_LONGEST_REASON = 300

Compile = Callable[[Path, float], None]
"""Compiles into a file within a number of seconds."""


class CompilerError(RuntimeError):
    """There is no compiled code, and why."""


@dataclass(frozen=True, slots=True)
class MachineCode:
    """How decisions are bound.

    Attributes:
        bind: binds them.
        problem: why it is in plain Python though compiled code was wanted; empty if all is well.
    """

    bind: Bind = bind_plain
    problem: str = ""


def obtain(
    log: Logger, folder: Path, compile_into: Compile, patience_s: float = PATIENCE_S
) -> MachineCode:
    """Returns the compiled decision, called once already; raises nothing.

    Args:
        log: told what is waited for.
        folder: where code is kept; may be missing, or closed to writing.
        compile_into: runs the compiler.
        patience_s: how long to wait for it, or for another process that runs it, seconds.
    """
    try:
        entry = importlib.import_module("router.entry")
        bind = _obtain(entry, log, folder, compile_into, time.monotonic() + patience_s)
        _rehearse(bind)
    except Exception as error:
        # Whatever it is: a router decides in plain Python rather than not at all.
        reason = f"{type(error).__name__}: {error}"[-_LONGEST_REASON:]
        log.warning("decision_not_compiled", problem=reason, folder=str(folder))
        return MachineCode(problem=reason)
    return MachineCode(bind)


def _obtain(
    entry: ModuleType, log: Logger, folder: Path, compile_into: Compile, until_s: float
) -> Bind:
    path = folder / f"decision-{entry.code_name()}.bin"
    bind = _stored(entry, path, log)
    if bind is not None:
        return bind
    log.info("compiling_decision", folder=str(folder), note="once per version, under a minute")
    with contextlib.ExitStack() as stack:
        made_in = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_turn(folder / "decision.lock", until_s))
            bind = _stored(entry, path, log)  # another process may have made it meanwhile
            if bind is not None:
                return bind
            made_in = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
        except OSError as error:
            log.warning("compiled_code_not_kept", folder=str(folder), detail=str(error))
            made_in = stack.enter_context(tempfile.TemporaryDirectory())
        made = Path(made_in, path.name)
        compile_into(made, max(0.0, until_s - time.monotonic()))
        bind = cast("Bind", entry.load(made.read_bytes()))
        with contextlib.suppress(OSError):
            made.replace(path)
    return bind


def _stored(entry: ModuleType, path: Path, log: Logger) -> Bind | None:
    """Returns the decision in a file, None if there is none or it is damaged."""
    try:
        bind: Bind = entry.load(path.read_bytes())
    except OSError:
        return None
    except entry.CodeError as error:
        log.warning("compiled_code_refused", file=str(path), detail=str(error))
        return None
    return bind


@contextlib.contextmanager
def _turn(path: Path, until_s: float) -> Iterator[None]:
    """Holds a lock, which ends with the process at the latest; raises CompilerError."""
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until_s:
                    raise CompilerError("another process still compiles") from None
                time.sleep(_POLL_S)
        yield


def run_compiler(path: Path, patience_s: float) -> None:
    """Compiles in a process of its own, whose memory ends with it, for any processor of this kind.

    Raises:
        CompilerError: it failed.
        TimeoutExpired: it took too long.
    """
    entry = importlib.import_module("router.entry")
    root = str(Path(sys.modules["router"].__path__[0]).parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = {**os.environ, **entry.ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)}
    input_end, our_end = os.pipe()
    try:
        done = subprocess.run(
            # Not from the current directory, where `router` may be somebody else's.
            [sys.executable, "-P", "-c", _PROGRAM, str(path)],
            env=environ,
            stdin=input_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=patience_s,
            check=False,
        )
    finally:
        os.close(input_end)
        os.close(our_end)
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        raise CompilerError(f"the compiler failed ({done.returncode}): {last}")


def _rehearse(bind: Bind) -> None:
    """Decides once by price and by a network, compiled and plain; raises if they differ.

    What a first call has to load is loaded before a request comes.
    """
    count, ones = 4, np.ones(4)
    fleet = FleetArrays(
        tier_C=np.array([0, 1, 0, 1]),
        device_C=np.array([0, 0, 1, 1]),
        peers_CP=np.array([[0, 1], [0, 1], [2, 3], [2, 3]]),
        step_s_C=0.01 * ones,
        per_sequence_s_C=np.array([0.001, 0.004, 0.001, 0.004]),
        per_prompt_token_s_C=1e-5 * ones,
        overhead_s_C=0.002 * ones,
        max_batch_C=16.0 * ones,
        quality_KC=np.array([[0.7, 1.0, 0.7, 1.0]]),
        availability_C=ones,
        home_C=np.array([True, True, False, False]),
        prefix_room_C=500.0 * ones,
        cached_C=0.0 * ones,
    )
    query = Query(0, 0.4, 100.0, 8.0, 8.0, 0.0, 110.0, 50.0, 40.0, 0.1, 0.5, 0.5, 20.0, 2.0, 1.1)
    rng = np.random.default_rng(1)
    layers: list[Any] = [
        rng.normal(0.0, 0.1, part.shape).astype(np.float32)
        for part in zero_weights(FEATURE_COUNT, 8)
    ]
    weights = Weights(*layers)
    own_LC, others_LC, seen_LC = rng.integers(0, 9, (3, 3, count)).astype(np.float64)
    for name in ("price", DQN):
        rule = Rule(ROW[name], PRICE_DEFAULTS_P.copy(), weights)
        found = []
        for how in (bind_plain, bind):
            bound = BoundDecision(rule, fleet, own_LC, others_LC, seen_LC, how)
            action = bound.decide(query, 0.0, -1, 0.5, 0.5, query.slack_s, 0.7)
            found.append((action, bound.board.decided.score_C))
        (plain, plain_C), (compiled, compiled_C) = found
        if plain != compiled or not np.allclose(plain_C, compiled_C, rtol=0.0, atol=_TOLERANCE):
            raise ArithmeticError(f"compiled and plain Python decide differently by {name!r}")


def main() -> int:
    """Makes the compiled decision beforehand; returns the exit status."""
    log = get_logger(__name__)
    found = obtain(log, cache_folder(), run_compiler, _PATIENCE_AHEAD_S)
    print(found.problem or f"the compiled decision is in {cache_folder()}")
    return 1 if found.problem else 0


if __name__ == "__main__":
    sys.exit(main())
