"""Requests that were served, as the experience stream tells of them: when each ran, and where."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from router.profile import LatencyProfile
from services.common.state.experience_stream import ExperienceStream
from services.common.times import seconds_of
from tiercel.common.v1 import common_pb2, experience_pb2
from trainer.profiling.served_fit import FEWEST_TOKENS, Served

MOST_ENTRIES = 400_000
"""Entries that are read at most: more than the stream keeps."""
_PAGE = 2_000
_AFTER_DEADLINE_S = 1.0
"""How long a request is taken to have run on after its deadline, where nobody says how it ended."""
_FARTHEST_S = 3.0 * 86_400.0
"""What is stamped farther than this from most records, or lasted longer, is no served request.

More is never asked for at once.
"""

Key = tuple[str, int, int]
"""Router, epoch and number of a decision."""


@dataclasses.dataclass(frozen=True, slots=True)
class History:
    """What the stream told of a time.

    Attributes:
        requests: What was sent to the endpoints asked about, times from any one moment on.
        span_s: From the first of them to the last.
        whole_count: Answers among them whose course is known.
        unseen_count: Requests whose course is not known, such as those that were rescued, failed,
            or sent by somebody else than a router.
        in_one_piece_count: Answers that did not stream.
        lost_count: Decisions of the same routers of which there is no record.
    """

    requests: tuple[Served, ...]
    span_s: float
    whole_count: int
    unseen_count: int
    in_one_piece_count: int
    lost_count: int


async def read_entries(
    stream: ExperienceStream, start_s: float, end_s: float
) -> list[experience_pb2.ExperienceEntry]:
    """Returns what was written from a moment to another, seconds since 1970.

    What is no entry is left out.

    Raises:
        StateUnavailableError: The stream does not answer.
    """
    entries: list[experience_pb2.ExperienceEntry] = []
    last, end_ms = f"{max(0, int(start_s * 1e3) - 1)}", end_s * 1e3
    while len(entries) < MOST_ENTRIES:
        page = await stream.behind(last, _PAGE)
        for each in page:
            if int(each.entry_id.partition("-")[0]) > end_ms:
                return entries
            try:
                entries.append(experience_pb2.ExperienceEntry.FromString(each.payload))
            except DecodeError:
                continue
        if not page:
            return entries
        last = page[-1].entry_id
    return entries


def history(
    entries: Iterable[experience_pb2.ExperienceEntry],
    devices: Mapping[str, str],
    profile: LatencyProfile,
) -> History:
    """Returns what entries tell of the requests of some endpoints.

    Args:
        entries: The entries.
        devices: Device of each endpoint.
        profile: That of these devices, to tell answers in one piece from streamed ones.
    """
    decisions: dict[Key, experience_pb2.DecisionRecord] = {}
    outcomes: dict[Key, experience_pb2.OutcomeRecord] = {}
    for entry in entries:
        if entry.HasField("decision"):
            decision = entry.decision
            decisions[decision.router_id, decision.epoch, decision.sequence] = decision
        elif entry.HasField("outcome"):
            outcome = entry.outcome
            # Of several the first counts: later ones are feedback.
            outcomes.setdefault((outcome.router_id, outcome.epoch, outcome.sequence), outcome)
    stamps = [_ns_of(each.decide_time) for each in decisions.values()]
    stamps += [_ns_of(each.end_time) for each in outcomes.values()]
    middle_ns = statistics.median(stamps or [0])
    decisions = {k: each for k, each in decisions.items() if _is_near(each.decide_time, middle_ns)}
    outcomes = {k: each for k, each in outcomes.items() if _is_near(each.end_time, middle_ns)}
    base_ns = min((_ns_of(each.decide_time) for each in decisions.values()), default=0)
    reader = _Reader(devices, profile, base_ns)
    for key, decision in decisions.items():
        reader.read(decision, outcomes.get(key))
    for key, outcome in outcomes.items():
        if key not in decisions:
            reader.read_end(outcome)
    found = reader.found
    sent = [each.sent_s for each in found]
    return History(
        requests=tuple(found),
        span_s=max(sent) - min(sent) if sent else 0.0,
        whole_count=sum(each.is_complete and each.is_certain for each in found),
        unseen_count=sum(not each.is_certain for each in found),
        in_one_piece_count=reader.in_one_piece_count,
        lost_count=_lost({*decisions, *outcomes}),
    )


def _ns_of(moment: Timestamp) -> int:
    """Returns nanoseconds since 1970, also of a message that holds no moment."""
    return moment.seconds * 1_000_000_000 + moment.nanos


def _is_near(moment: Timestamp, middle_ns: float) -> bool:
    return abs(_ns_of(moment) - middle_ns) <= _FARTHEST_S * 1e9


def _lost(keys: Iterable[Key]) -> int:
    """Returns how many decisions are missing between the first and the last of each router."""
    numbers: dict[tuple[str, int], set[int]] = defaultdict(set)
    for router_id, epoch, sequence in keys:
        numbers[router_id, epoch].add(sequence)
    return sum(max(each) - min(each) + 1 - len(each) for each in numbers.values())


class _Reader:
    """Turns records into requests."""

    def __init__(self, devices: Mapping[str, str], profile: LatencyProfile, base_ns: int) -> None:
        self._devices = devices
        self._profile = profile
        self._base_ns = base_ns
        self.found: list[Served] = []
        self.in_one_piece_count = 0

    def read(
        self,
        decision: experience_pb2.DecisionRecord,
        outcome: experience_pb2.OutcomeRecord | None,
    ) -> None:
        """Reads a request."""
        if not 0 <= decision.action < len(decision.candidates):
            return
        chosen = decision.candidates[decision.action]
        prompt = float(max(1, decision.prompt_token_count))
        sent_s = (_ns_of(decision.decide_time) - self._base_ns) / 1e9
        if outcome is None:
            slack_s = min(max(0.0, seconds_of(decision.slack)), _FARTHEST_S)
            end_s = sent_s + slack_s + _AFTER_DEADLINE_S
            self._add(chosen, prompt, 0, sent_s, math.inf, end_s)
            return
        if outcome.status == common_pb2.OUTCOME_STATUS_INVALID:
            return  # no tier worked on it
        end_s = max(sent_s, self._end_s(outcome))
        prompt = max(1.0, prompt - max(0, outcome.cached_prompt_token_count))  # what was new of it
        if outcome.rescued or outcome.retry_count:
            # It left its first candidate at a moment that nobody wrote down.
            self._add(chosen, prompt, 0, sent_s, math.inf, end_s)
            if outcome.HasField("served_by"):
                self._add(outcome.served_by, prompt, 0, sent_s, math.inf, end_s)
            return
        first_s = math.inf
        if outcome.HasField("first_token_latency"):
            arrival_s = end_s - seconds_of(outcome.latency)
            first_s = arrival_s + seconds_of(outcome.first_token_latency)
        tokens = outcome.output_token_count
        is_known = sent_s <= first_s <= end_s and tokens >= 1
        is_whole = is_known and outcome.HasField("served_by")
        if is_known and self._came_in_one_piece(chosen.tier, tokens, end_s - first_s):
            self.in_one_piece_count += 1
            is_known = is_whole = False
        self._add(
            chosen, prompt, tokens, sent_s, first_s if is_known else math.inf, end_s,
            is_complete=is_whole, is_certain=is_known,
        )  # fmt: skip

    def read_end(self, outcome: experience_pb2.OutcomeRecord) -> None:
        """Reads the end of a request of which the decision is not known."""
        if outcome.HasField("served_by"):
            end_s = self._end_s(outcome)
            sent_s = end_s - min(max(0.0, seconds_of(outcome.latency)), _FARTHEST_S)
            self._add(outcome.served_by, 1.0, 0, sent_s, math.inf, end_s)

    def _end_s(self, outcome: experience_pb2.OutcomeRecord) -> float:
        return (_ns_of(outcome.end_time) - self._base_ns) / 1e9

    def _came_in_one_piece(self, tier: str, tokens: int, decode_s: float) -> bool:
        later = tokens - 1
        costs = self._profile.tiers.get(tier)
        return costs is not None and later >= FEWEST_TOKENS and decode_s < costs.token_s / 2.0

    def _add(
        self,
        candidate: common_pb2.Candidate,
        prompt_tokens: float,
        output_tokens: int,
        sent_s: float,
        first_s: float,
        end_s: float,
        *,
        is_complete: bool = False,
        is_certain: bool = False,
    ) -> None:
        device = self._devices.get(candidate.endpoint)
        if device is not None and candidate.tier in self._profile.tiers:
            self.found.append(
                Served(
                    candidate.tier,
                    device,
                    prompt_tokens,
                    output_tokens,
                    sent_s,
                    first_s,
                    end_s,
                    is_complete,
                    is_certain,
                )
            )
