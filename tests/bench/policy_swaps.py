"""The active policy is swapped under load: no request is lost, and no decision mixes two versions.

python -m tests.bench.policy_swaps [--swaps 1000] [--json FILE]

Two routers, one of them of two workers, a load monitor, a trainer and Redis as processes. The
trainer promotes two snapshots and `price` in turn. Each swap goes the way of any promotion:
registry, Redis, watching routers. The next one follows once every worker that is asked took it in.
Meanwhile callers ask for answers, some of them streamed, some by a deadline that nobody can keep.

What must hold: every request sent is answered or refused, by its caller's account and by the
routers'. Every decision has one record, of the version that its answer names, decided while
that version was in use. Its scores, found again by ExplainDecision, are those of that version's
weights and of no other's.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import redis.asyncio

from router.dqn.network import corrections
from router.dqn.snapshot import Weights, load_snapshot, save_snapshot
from router.features import BASE_COLUMN, QUALITY
from services.common.state import keys
from tests.conftest import RedisServer
from tests.fakes.mesh_processes import MeshProcesses, mesh_processes
from tests.fakes.triton import FakeTriton, Script
from tests.waiting import until
from tiercel.common.v1 import experience_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as monitor_grpc
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb_grpc
from tiercel.trainer.v1 import trainer_service_pb2 as trainer_pb
from trainer.shipped import POLICIES, named

CALLERS = 8
WORKERS = {"a": 1, "b": 2}
BUILT_IN, LEARNED = "price", "dqn"
PULL = 0.2
"""By how much the second snapshot draws towards quality: it scores otherwise at every decision."""
TOLERANCE = 1e-4
"""Most that a score found again may be off; the network reckons in single precision."""
_SCRIPT = Script(tokens=("a",) * 4, step_s=0.04)
_DEADLINE_S, _CALL_S = 3.0, 20.0
_HOPELESS_S = 0.002
_SETTLED_S = 120.0
_PAGE = 10_000


@dataclass
class Findings:
    """What was seen.

    Attributes:
        swaps: promotions that every router process took in.
        swap_s: mean time from the call to the last router's word, seconds.
        sent: requests.
        answered: of those.
        refused: of those, with the reason that no candidate could be in time.
        others: how the rest of them ended; there may be none.
        counted: requests offered by the routers' own account.
        ended: of those, ended by that account.
        spanning: answered requests under which the policy was swapped.
        explained: answered requests whose decision was explained.
        found_again: of those decided by a network, whose scores are those of the version named.
        told_apart: of those, whose scores are not those of the other snapshot.
        under_pressure: decisions by a network whose scores a target or its first deadline changed.
        mixed: what was wrong with a decision; there may be nothing.
        records: decisions in the experience stream.
        missing: answered requests without exactly one decision and one outcome there.
        foreign: records there of requests that were not answered.
        by_version: decisions by the version that took them.
    """

    swaps: int = 0
    swap_s: float = 0.0
    sent: int = 0
    answered: int = 0
    refused: int = 0
    others: list[str] = field(default_factory=list)
    counted: int = 0
    ended: int = 0
    spanning: int = 0
    explained: int = 0
    found_again: int = 0
    told_apart: int = 0
    under_pressure: int = 0
    mixed: list[str] = field(default_factory=list)
    records: int = 0
    missing: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    by_version: Counter[str] = field(default_factory=Counter)


def snapshots() -> list[bytes]:
    """Returns a trained snapshot, and the same drawn towards quality."""
    trained = load_snapshot(named(POLICIES, "opt-a100").read_bytes())
    weights = trained.weights
    w3_P = weights.w3_P.copy()
    w3_P[weights.hidden_count + QUALITY] += np.float32(PULL)
    return [
        save_snapshot(replace(trained, weights=each))
        for each in (weights, weights._replace(w3_P=w3_P))
    ]


def are_scores_of(reply: pb.ExplainDecisionResponse, weights: Weights) -> bool:
    """Returns whether a network gave a decision its scores.

    A score is that of the price plus what the network adds. How far candidates are apart by price
    is one of the features, so what is left without the addition must be apart by just that.
    """
    rows = [row for row in reply.candidates if row.HasField("score")]
    x_CF = np.array([row.features for row in rows], np.float32)
    score_C = np.array([row.score for row in rows])
    open_C = np.ones(len(rows), np.float32)
    price_C = score_C - corrections(x_CF, open_C, np.float32(len(rows)), *weights)
    gap_C, told_C = price_C - price_C.max(), x_CF[:, BASE_COLUMN]
    # A feature ends at -1.
    return bool(np.allclose(np.maximum(gap_C, -1.0), told_C, rtol=0.0, atol=TOLERANCE))


def version_of(policy: str, version: str) -> str:
    """Returns how a version is called here; a policy without weights has one."""
    return version if policy == LEARNED else policy


class Run:
    """Swaps, asks and checks."""

    def __init__(self, processes: MeshProcesses) -> None:
        """Takes what runs."""
        self.found = Findings()
        self._processes = processes
        self._networks: dict[str, Weights] = {}
        # When a version may have decided, by the wall clock: from the call that promoted it until
        # all have taken in the next one.
        self._in_use: dict[str, list[list[int]]] = {}
        self._before: list[int] = []
        self._present: list[int] = []
        self._answers: dict[str, str] = {}
        self._numbers = itertools.count()
        self._stop = asyncio.Event()

    async def swap(self, count: int) -> None:
        """Promotes one policy after the other while callers ask; ends once all have ended."""
        trainer = self._processes.trainer_stub
        wanted = []
        for blob in snapshots():
            request = trainer_pb.PublishPolicyRequest(snapshot=blob)
            version = (await trainer.PublishPolicy(request)).policy.policy_version
            self._networks[version] = load_snapshot(blob).weights
            wanted.append((LEARNED, version))
        wanted.append((BUILT_IN, ""))
        async with AsyncExitStack() as stack:
            routers = [await self._router(stack, number) for number in range(CALLERS)]
            monitor = await stack.enter_async_context(
                grpc.aio.insecure_channel(self._processes.monitor)
            )
            ready = partial(self._is_ready, routers, monitor)
            await until(ready, "routers and tiers are there", _SETTLED_S)
            self._begin(BUILT_IN)
            calls = [asyncio.create_task(self._call(router)) for router in routers]
            try:
                for policy, version in itertools.islice(itertools.cycle(wanted), count):
                    await self._promote(routers, policy, version)
            finally:
                self._stop.set()
                await asyncio.gather(*calls)

    async def settle(self, redis_url: str) -> None:
        """Reads the routers' accounts and the experience stream once they are complete."""
        found, give_up_s = self.found, time.monotonic() + _SETTLED_S
        async with grpc.aio.insecure_channel(self._processes.monitor) as channel:
            while time.monotonic() < give_up_s:
                await self._count(channel)
                if found.counted == found.ended == found.sent:
                    break
                await asyncio.sleep(0.1)
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            while time.monotonic() < give_up_s:
                await self._read(client)
                if not found.missing:
                    break
                await asyncio.sleep(0.5)

    def _begin(self, version: str) -> None:
        begun = [time.time_ns(), 2**63 - 1]
        self._in_use.setdefault(version, []).append(begun)
        self._before, self._present = self._present, begun

    async def _router(self, stack: AsyncExitStack, number: int) -> Any:
        """Returns a router's stub on a connection of its own, which one of its workers takes."""
        addresses = [
            process.address
            for process, workers in zip(self._processes.routers, WORKERS.values(), strict=True)
            for _ in range(workers)
        ]
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.aio.insecure_channel(addresses[number % len(addresses)], options=options)
        return pb_grpc.RouterInferenceServiceStub(await stack.enter_async_context(channel))

    async def _promote(self, routers: Sequence[Any], policy: str, version: str) -> None:
        """Promotes a policy and waits for the word of the routers, and of every worker asked."""
        found, began_s = self.found, time.monotonic()
        self._begin(version_of(policy, version))
        request = trainer_pb.PromotePolicyRequest(
            policy=policy, policy_version=version, without_gate=True
        )
        reply = await self._processes.trainer_stub.PromotePolicy(request, timeout=_CALL_S)
        if reply.using_router_count != len(WORKERS):
            found.mixed.append(f"swap {found.swaps}: {reply.using_router_count} routers use it")

        async def is_in_use(router: Any) -> bool:
            status = await router.GetRouterStatus(pb.GetRouterStatusRequest(), timeout=_CALL_S)
            present = version_of(status.policy, status.policy_version)
            return bool(present == version_of(policy, version))

        waits = (
            until(partial(is_in_use, each), "a worker took it in", _SETTLED_S) for each in routers
        )
        await asyncio.gather(*waits)
        self._before[1] = time.time_ns()
        found.swaps += 1
        found.swap_s += (time.monotonic() - began_s - found.swap_s) / found.swaps

    async def _call(self, router: Any) -> None:
        while not self._stop.is_set():
            await self._ask(router, next(self._numbers))

    async def _ask(self, router: Any, number: int) -> None:
        """Sends a request and, once it is answered, asks why it was decided so."""
        found, swaps = self.found, self.found.swaps
        spec = pb.GenerationSpec(
            prompt="hello", task="piqa", request_id=f"swap-{number}", max_output_tokens=4
        )
        spec.deadline.FromNanoseconds(
            round((_HOPELESS_S if number % 25 == 3 else _DEADLINE_S) * 1e9)
        )
        found.sent += 1
        try:
            if number % 4:
                request = pb.GenerateRequest(spec=spec)
                answer = (await router.Generate(request, timeout=_CALL_S)).completion
            else:
                call = router.GenerateStream(pb.GenerateStreamRequest(spec=spec), timeout=_CALL_S)
                answer = [part.completion async for part in call][-1]
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                found.refused += 1
            else:
                found.others.append(f"{spec.request_id}: {error.code().name} {error.details()}")
            return
        found.answered += 1
        found.spanning += found.swaps > swaps
        version = version_of(answer.policy, answer.policy_version)
        found.by_version[version] += 1
        self._answers[spec.request_id] = answer.policy_version
        try:
            explain = pb.ExplainDecisionRequest(request_id=spec.request_id)
            reply = await router.ExplainDecision(explain, timeout=_CALL_S)
        except grpc.aio.AioRpcError as error:
            problem = f"not explained: {error.code().name} {error.details()}"
        else:
            found.explained += 1
            problem = self._problem(answer, reply)
        if problem:
            found.mixed.append(f"{spec.request_id}: {problem}")

    def _problem(self, answer: pb.Completion, reply: pb.ExplainDecisionResponse) -> str:
        """Returns what is wrong with a decision; empty if it is of one version in all it tells."""
        named_so = (reply.policy, reply.policy_version)
        if named_so != (answer.policy, answer.policy_version) or reply.fallback_reason:
            by = f"{reply.policy_version} {reply.fallback_reason}".rstrip()
            return f"decided by {by}, answered by {answer.policy_version}"
        version, at_ns = version_of(*named_so), reply.decide_time.ToNanoseconds()
        if not any(begin <= at_ns <= end for begin, end in self._in_use.get(version, [])):
            return f"decided by {version} at {at_ns}, when it was not in use"
        if bool(reply.feature_names) != (version in self._networks):
            return (
                f"scored by {'a network' if reply.feature_names else 'no network'}, not {version}"
            )
        scores = [row.score if row.HasField("score") else -math.inf for row in reply.candidates]
        chosen = reply.candidates[reply.action]
        if scores[reply.action] != max(scores):
            return f"{chosen.candidate} was chosen and not the best, of {scores}"
        # A rescue or a retry answers elsewhere.
        taken = answer.tier, answer.endpoint
        is_there = taken == (chosen.candidate.tier, chosen.candidate.endpoint)
        if not (is_there or answer.rescued or answer.retry_count):
            return f"{taken} answered, {chosen.candidate} was chosen"
        return self._score_problem(reply, version) if reply.feature_names else ""

    def _score_problem(self, reply: pb.ExplainDecisionResponse, version: str) -> str:
        if reply.target_pressure > 0.0 or reply.smallest_tier_only:
            self.found.under_pressure += 1
            return ""
        fitting = [
            each for each, weights in self._networks.items() if are_scores_of(reply, weights)
        ]
        self.found.found_again += version in fitting
        self.found.told_apart += fitting == [version]
        return "" if version in fitting else f"decided by {version}, scores are those of {fitting}"

    async def _is_ready(self, routers: Sequence[Any], channel: grpc.aio.Channel) -> bool:
        """Returns whether the monitor has seen the routers, and every worker asked the tiers."""
        if len((await _state(channel)).routers) < len(WORKERS):
            return False
        for router in routers:
            status = await router.GetRouterStatus(pb.GetRouterStatusRequest(), timeout=_CALL_S)
            if not all(each.usable for each in status.candidates):
                return False
        return True

    async def _count(self, channel: grpc.aio.Channel) -> None:
        """Adds up what the routers have reported of their requests."""
        counts = [router.outcomes for router in (await _state(channel)).routers]
        self.found.counted = sum(each.offered_count for each in counts)
        self.found.ended = sum(
            each.on_time_count
            + each.late_count
            + each.refused_count
            + each.cancelled_count
            + each.failed_count
            for each in counts
        )

    async def _read(self, client: Any) -> None:
        """Reads the whole stream."""
        found = self.found
        decisions: dict[str, list[str]] = {}
        outcomes: Counter[str] = Counter()
        after = "-"
        while page := await client.xrange(keys.EXPERIENCE_STREAM, min=after, count=_PAGE):
            for entry_id, fields in page:
                after = f"({entry_id.decode()}"
                entry = experience_pb2.ExperienceEntry.FromString(fields[b"e"])
                if entry.HasField("decision"):
                    versions = decisions.setdefault(entry.decision.request_id, [])
                    versions.append(entry.decision.policy_version)
                elif entry.HasField("outcome"):
                    outcomes[entry.outcome.request_id] += 1
        found.records = sum(map(len, decisions.values()))
        found.missing = [
            f"{each}: decisions of {decisions.get(each, [])}, {outcomes[each]} outcomes"
            for each, version in self._answers.items()
            if decisions.get(each) != [version] or outcomes[each] != 1
        ]
        found.foreign = sorted((decisions.keys() | outcomes.keys()) - self._answers.keys())


async def _state(channel: grpc.aio.Channel) -> Any:
    stub: Any = monitor_grpc.LoadMonitorServiceStub(channel)
    return (await stub.GetSystemState(monitor_pb.GetSystemStateRequest(), timeout=_CALL_S)).state


def problems(found: Findings) -> list[str]:
    """Returns what did not hold; nothing if all did."""
    missed = []
    if found.sent != found.answered + found.refused or found.others:
        missed.append(f"{len(found.others)} of {found.sent} requests were lost: {found.others[:3]}")
    if not found.counted == found.ended == found.sent:
        missed.append(f"routers count {found.counted} offered, {found.ended} ended")
    if found.mixed:
        missed.append(f"{len(found.mixed)} decisions are not of one version: {found.mixed[:3]}")
    if found.explained != found.answered:
        missed.append(f"{found.answered - found.explained} decisions were not explained")
    if found.missing or found.foreign:
        missed.append(f"records: {found.missing[:3]} missing, {found.foreign[:3]} foreign")
    return missed


@asynccontextmanager
async def swapping(folder: Path, redis_url: str, *, compiled: bool) -> AsyncIterator[Run]:
    """Starts the mesh before fake tiers on two endpoints.

    Args:
        folder: where its files go.
        redis_url: an empty Redis.
        compiled: whether routers decide by compiled code, made before they serve.
    """
    own = f"compiled = {str(compiled).lower()}\n"
    async with AsyncExitStack() as stack:
        endpoints = []
        for index in range(2):
            triton = await FakeTriton(default=_SCRIPT).start()
            stack.push_async_callback(triton.stop)
            endpoints.append((f"e{index}", triton.address))
        running = mesh_processes(
            folder,
            endpoints,
            redis_url=redis_url,
            routers={name: f"{own}workers = {count}\n" for name, count in WORKERS.items()},
            deadline_s=_DEADLINE_S,
        )
        yield Run(await stack.enter_async_context(running))


async def measure(folder: Path, redis_url: str, *, swaps: int, compiled: bool = True) -> Findings:
    """Swaps so often and returns what was seen."""
    async with swapping(folder, redis_url, compiled=compiled) as run:
        await run.swap(swaps)
        await run.settle(redis_url)
    return run.found


def told(found: Findings) -> Mapping[str, Any]:
    """Returns what was seen, JSON-ready."""
    return {**asdict(found), "by_version": dict(found.by_version), "problems": problems(found)}


def main() -> int:
    """Runs it and prints what was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            found = asyncio.run(measure(Path(folder), server.url, swaps=given.swaps))
        finally:
            server.stop()
    for name, value in told(found).items():
        print(f"{name:<16} {value}")
    if given.json:
        given.json.write_text(json.dumps(told(found), indent=2) + "\n", encoding="utf-8")
    return 1 if problems(found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
