"""The simulator's state: flat arrays of records, so that compiled code and tests see the same.

Shape letters: N requests, C candidates, D devices, R routers, K tasks, T tiers, M iterations kept
in a ring, S snapshots kept, F features, V conversations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.features import FeatureScratch
from router.fleet import FleetArrays
from router.ledger import LoadArrays
from router.policies.scores import Scratch

# Status of a request.
PENDING = 0  # not arrived yet, or waiting for a new decision after a lost device
WAITING = 1  # in a tier's queue
RUNNING = 2  # in a tier's batch
ANSWERED = 3  # complete, on time or late
CANCELLED = 4  # cancelled at its deadline (or at the end of its grace, if soft)
REFUSED = 5  # not admitted
FAILED = 6  # lost with its device, or nothing usable

# Rows of the ledger.
IN_FLIGHT = 0
PROMPTS = 1  # prompt tokens of those without a token yet
REMAINING = 2  # predicted output tokens still to come
DECREASING = 3  # running sequences whose prediction is not used up
ADMITTED = 4  # prompt tokens in the running iteration
LEDGER_ROWS = 5

MOST_ATTEMPTS = 3  # at one request: what devices lose is sent anew twice

# Kinds of a fleet event.
EVENT_LOST = 0  # the device is gone; what it held is lost
EVENT_BACK = 1  # the device is back, empty
EVENT_SLOW = 2  # its iterations take `value` times as long; routers do not know

REQUEST = np.dtype(
    [
        # given
        ("arrival_s", np.float64),
        ("deadline_s", np.float64),
        ("cancel_s", np.float64),
        ("decay_s", np.float64),
        ("prompt", np.float64),
        ("output", np.int64),
        ("task", np.int32),
        ("router", np.int32),
        ("conversation", np.int32),  # -1 = none
        ("first_token", np.int8),
        ("interval_s", np.float64),  # between the due times of two tokens, 0 = no schedule
        ("place", np.int8),
        # while it runs
        ("status", np.int8),
        ("rescued", np.int8),
        ("explored", np.int8),
        ("floored", np.int8),
        ("impossible", np.int8),  # 1 = refused, and would be with nothing under way, too
        ("stay", np.int8),  # `router.seat.Stay`
        ("seat", np.int32),  # where its conversation was served last, as its router knows it
        ("cached", np.float64),  # prompt tokens its router takes for cached there
        ("counted", np.float64),  # prompt tokens its router counts as waiting
        ("hit", np.float64),  # prompt tokens that were cached where it ran
        ("attempt", np.int32),
        ("candidate", np.int32),
        ("predicted", np.int64),
        ("first_iteration", np.int64),
        ("last_iteration", np.int64),
        ("next", np.int64),
        ("previous", np.int64),
        ("first_token_s", np.float64),
        # for the record
        ("action", np.int32),
        ("on_time", np.int8),
        ("row", np.int64),
        ("probability", np.float64),
        ("end_s", np.float64),
        ("reward", np.float64),
        ("first_reward", np.float64),
        ("predicted_s", np.float64),
    ],
    align=True,
)

CANDIDATE = np.dtype(
    [
        ("step_s", np.float64),
        ("per_sequence_s", np.float64),
        ("per_prompt_token_s", np.float64),
        ("overhead_s", np.float64),
        ("iteration_cv", np.float64),
        ("max_prompt", np.float64),
        ("kv_room", np.float64),  # tokens; infinite where there is no limit
        ("kv_used", np.float64),
        ("prefix_room", np.float64),  # tokens; 0 where nothing is cached
        ("prefix_used", np.float64),
        ("newest", np.int64),  # conversation used last, -1 = none is cached
        ("oldest", np.int64),
        ("max_batch", np.int64),
        ("device", np.int64),
        ("running", np.int64),
        ("queued", np.int64),
        ("iteration", np.int64),
        ("head", np.int64),
        ("tail", np.int64),
    ],
    align=True,
)

DEVICE = np.dtype(
    [
        ("end_s", np.float64),
        ("slow", np.float64),
        ("active", np.int64),
        ("last_slot", np.int64),
        ("slots", np.int64),
        ("alive", np.int64),
    ],
    align=True,
)

ROUTER = np.dtype(
    [
        # the fields of `router.traffic.Traffic`
        ("last_s", np.float64),
        ("start_s", np.float64),
        ("short", np.float64),
        ("long", np.float64),
        ("mean_prompt", np.float64),
        ("gap_s", np.float64),
        ("gap_square_s2", np.float64),
        ("gaps", np.float64),
        ("others_rps", np.float64),
        ("returned_s", np.float64),
        ("returned_rps", np.float64),
        # the fields of `router.safety.Caution`
        ("raised", np.float64),
        ("ended", np.float64),
        ("missed", np.float64),
        ("at_s", np.float64),
        ("refused_s", np.float64),
        # the fields of `router.slowdown.Slowdown`
        ("compared", np.float64),
        ("ratios", np.float64),
        ("compared_s", np.float64),
        # the fields of `router.reserve.Peaks`
        ("block_s", np.float64),
        ("peak_rps", np.float64),
        ("peak_before_rps", np.float64),
        # the fields of `router.priority.Classes`
        ("mean_place", np.float64),
        ("refused", np.float64),
        ("refused_high", np.float64),
        ("refused_normal", np.float64),
        ("refused_low", np.float64),
    ],
    align=True,
)

SEAT = np.dtype(
    [
        ("candidate", np.int64),  # -1 = none
        ("kept", np.float64),  # tokens of the conversation when it was served last
        ("passed", np.float64),  # what the router had served on the candidate by then, tokens
        ("at_s", np.float64),
    ],
    align=True,
)

CACHED = np.dtype(
    [
        ("tokens", np.float64),  # 0 = not cached
        ("newer", np.int64),
        ("older", np.int64),
    ],
    align=True,
)

FLEET_EVENT = np.dtype(
    [("time_s", np.float64), ("device", np.int64), ("kind", np.int64), ("value", np.float64)],
    align=True,
)

CLOCK = np.dtype(
    [
        ("now_s", np.float64),
        ("next_tick_s", np.float64),
        ("tick_s", np.float64),
        ("delay_s", np.float64),
        ("optimism", np.float64),
        ("margin", np.float64),
        ("guard_s", np.float64),
        ("pessimism", np.float64),
        ("reserve", np.float64),
        ("epsilon", np.float64),
        ("seat_margin", np.float64),
        ("seat_memory_s", np.float64),
        ("state_age_s", np.float64),
        ("rate_short", np.float64),
        ("rate_long", np.float64),
        ("own_share", np.float64),
        ("own_rate", np.float64),
        ("others_rps", np.float64),  # -1 = no state yet
        ("burstiness", np.float64),
        ("reward_sum", np.float64),
        ("arrivals", np.int64),
        ("cancels", np.int64),
        ("fleet_events", np.int64),
        ("heap", np.int64),
        ("pending", np.int64),
        ("ticks", np.int64),
        ("records", np.int64),
        ("stride", np.int64),
        ("decisions", np.int64),
        ("events", np.int64),
        ("iterations", np.int64),
        ("rescues", np.int64),
        ("admission", np.int64),
        ("rescue", np.int64),
        ("retry", np.int64),
        ("picker", np.int64),
        ("every", np.int64),
        ("stays", np.int64),
        ("seat", np.int64),
        ("random", np.uint64),
        ("device_random", np.uint64),
    ],
    align=True,
)


class World(NamedTuple):
    """Everything one simulation consists of.

    Attributes:
        clock: one record: time, positions in the event sources, settings, counters.
        requests: one record per request, by arrival.
        candidates: one record per candidate: true costs, queue, batch.
        devices: one record per device.
        routers: one record per router: its own rate estimate, the caution of its admission, and the
            slowdown it has seen.
        pressure_RK: each router's pressure of each task (`router.pressure`).
        ends_RK: recent ends behind it.
        pressed_s_R1: when both held, seconds.
        target_K: each task's target; 0 = none is held.
        fleet_events: losses, returns and slow-downs, by time.
        cancel_N: request indices by the time they are cancelled if not done.
        slots_DS: candidate rows of each device, -1 beyond its number.
        ledger_RLC: each router's own load.
        seats_RV: where each router last served each conversation.
        passed_RC: tokens of prompts and answers it has served on each candidate.
        cached_CV: prefixes that each candidate has cached, in the order of their last use.
        token_s_CM: when iteration m (modulo M) ended, and with it the tokens that it gave.
        bucket_CM: first request of those whose last iteration is m (modulo M), -1 if none.
        stop_RCM: how many predictions are used up at the end of iteration m (modulo M).
        heap_s: rescue moments, a binary heap.
        heap_id: request and attempt (request * 4 + attempt) of each.
        pending_N: requests that wait for another decision.
        ring_s: time of each snapshot of the shared view, -inf if not taken.
        ring_SRLC: ledgers (first three rows) at that time.
        ring_SLC: their sum over all routers.
        ring_rate_SR2: rates of each router at that time, short and long.
        output_RK: predicted output tokens per router and task, exponentially weighted.
        fleet: what routers know of the fleet; availability changes in place, and what is home with
            the router that decides.
        home_RC: what is home to each router.
        seen: load as seen by the router that decides.
        allowed_C: what the request may use.
        usable_C: the fleet's availability while the request stays at home.
        decided: predictions and scores of the decision at hand; predictions are also scratch.
        features_CF: features of the decision at hand.
        base_P: parameters of the price score in the features of decisions by other policies.
        scratch: what computing them needs, the score they correct (`seen.score_C`) among it.
        mix_T: tier mix that exploration draws from.
        picked_T: last candidate an endpoint picker took of each tier, -1 at first.
        record_CF: recorded features, one block per recorded decision.
        record_allowed_C: recorded masks.
        record_id: request of each record.
    """

    clock: NDArray[np.void]
    requests: NDArray[np.void]
    candidates: NDArray[np.void]
    devices: NDArray[np.void]
    routers: NDArray[np.void]
    pressure_RK: NDArray[np.float64]
    ends_RK: NDArray[np.float64]
    pressed_s_R1: NDArray[np.float64]
    target_K: NDArray[np.float64]
    fleet_events: NDArray[np.void]
    cancel_N: NDArray[np.int64]
    slots_DS: NDArray[np.int64]
    ledger_RLC: NDArray[np.float64]
    seats_RV: NDArray[np.void]
    passed_RC: NDArray[np.float64]
    cached_CV: NDArray[np.void]
    token_s_CM: NDArray[np.float64]
    bucket_CM: NDArray[np.int64]
    stop_RCM: NDArray[np.float64]
    heap_s: NDArray[np.float64]
    heap_id: NDArray[np.int64]
    pending_N: NDArray[np.int64]
    ring_s: NDArray[np.float64]
    ring_SRLC: NDArray[np.float64]
    ring_SLC: NDArray[np.float64]
    ring_rate_SR2: NDArray[np.float64]
    output_RK: NDArray[np.float64]
    fleet: FleetArrays
    home_RC: NDArray[np.bool_]
    seen: LoadArrays
    allowed_C: NDArray[np.bool_]
    usable_C: NDArray[np.float64]
    decided: Scratch
    features_CF: NDArray[np.float32]
    base_P: NDArray[np.float64]
    scratch: FeatureScratch
    mix_T: NDArray[np.float64]
    picked_T: NDArray[np.int64]
    record_CF: NDArray[np.float32]
    record_allowed_C: NDArray[np.bool_]
    record_id: NDArray[np.int64]
