"""The event loop: what happens next, what a router sees, what it decides. Compiled.

`advance` runs the world to the next decision and prepares what the router sees; `apply` carries a
decision out. The compiled run, the Gymnasium environment and tests all go through these two.
"""

from __future__ import annotations

import numpy as np

from router.dqn.snapshot import Weights
from router.fleet import FleetArrays
from router.ledger import LoadArrays
from router.policies.scores import Query
from trainer.simulation.compiled import (
    decision,
    features,
    home,
    jit,
    jit_inner,
    jit_unmanaged,
    kernels,
    picker,
    pressure,
    priority,
    reserve,
    safety,
    seat,
    slowdown,
    traffic,
)
from trainer.simulation.dice import uniform
from trainer.simulation.engine import (
    cancel_late,
    dispatch,
    finish_iteration,
    lose_device,
    pressures_of,
    settle,
    start_iteration,
    take_out,
    teach_slowdown,
    teach_target,
)
from trainer.simulation.state import (
    EVENT_BACK,
    EVENT_LOST,
    EVENT_SLOW,
    FAILED,
    IN_FLIGHT,
    PENDING,
    PROMPTS,
    REFUSED,
    REMAINING,
    RUNNING,
    WAITING,
    World,
)


@jit_inner
def heap_push(w: World, time_s: float, key: int) -> None:
    """Adds a rescue moment."""
    clock = w.clock[0]
    j = clock.heap
    clock.heap += 1
    while j > 0:
        up = (j - 1) // 2
        if w.heap_s[up] <= time_s:
            break
        w.heap_s[j] = w.heap_s[up]
        w.heap_id[j] = w.heap_id[up]
        j = up
    w.heap_s[j] = time_s
    w.heap_id[j] = key


@jit_inner
def heap_pop(w: World) -> int:
    """Takes the earliest rescue moment off and returns its key."""
    clock = w.clock[0]
    key = w.heap_id[0]
    clock.heap -= 1
    count = clock.heap
    last_s = w.heap_s[count]
    last_id = w.heap_id[count]
    j = 0
    while True:
        child = 2 * j + 1
        if child >= count:
            break
        if child + 1 < count and w.heap_s[child + 1] < w.heap_s[child]:
            child += 1
        if last_s <= w.heap_s[child]:
            break
        w.heap_s[j] = w.heap_s[child]
        w.heap_id[j] = w.heap_id[child]
        j = child
    w.heap_s[j] = last_s
    w.heap_id[j] = last_id
    return int(key)


@jit_inner
def take_snapshot(w: World, now_s: float) -> None:
    """Keeps what the monitor collects at a tick: every router's ledger and rates."""
    clock = w.clock[0]
    s = clock.ticks % len(w.ring_s)
    w.ring_s[s] = now_s
    for r in range(len(w.routers)):
        for row in range(3):
            for c in range(len(w.candidates)):
                if r == 0:
                    w.ring_SLC[s, row, c] = 0.0
                w.ring_SRLC[s, r, row, c] = w.ledger_RLC[r, row, c]
                w.ring_SLC[s, row, c] += w.ledger_RLC[r, row, c]
        w.ring_rate_SR2[s, r, 0] = traffic.short_rate_rps(w.routers[r], now_s)
        w.ring_rate_SR2[s, r, 1] = traffic.long_rate_rps(w.routers[r], now_s)
    clock.ticks += 1
    clock.next_tick_s = now_s + clock.tick_s


@jit_inner
def see(w: World, router: int, now_s: float) -> None:
    """Fills the view of a router: own ledger exactly, others' as last published; and the rates."""
    clock = w.clock[0]
    ledger_LC = w.ledger_RLC[router]
    for c in range(len(w.candidates)):
        w.seen.in_flight_C[c] = ledger_LC[IN_FLIGHT, c]
        w.seen.waiting_prompt_tokens_C[c] = ledger_LC[PROMPTS, c]
        w.seen.remaining_output_tokens_C[c] = ledger_LC[REMAINING, c]
    own = w.routers[router]
    short = clock.own_rate = traffic.short_rate_rps(own, now_s)
    long = own_long = traffic.long_rate_rps(own, now_s)
    clock.state_age_s = 0.0
    clock.others_rps = -1.0
    if len(w.routers) > 1:
        clock.state_age_s = now_s
        for c in range(len(w.candidates)):
            w.fleet.home_C[c] = w.home_RC[router, c]
        newest = -1
        for s in range(len(w.ring_s)):
            visible = w.ring_s[s] >= 0.0 and w.ring_s[s] <= now_s - clock.delay_s
            if visible and (newest < 0 or w.ring_s[s] > w.ring_s[newest]):
                newest = s
        if newest >= 0:
            clock.state_age_s = now_s - w.ring_s[newest]
            # All less the own: loads are whole numbers, so nothing is lost to rounding.
            all_LC, own_LC = w.ring_SLC[newest], w.ring_SRLC[newest, router]
            for c in range(len(w.candidates)):
                w.seen.in_flight_C[c] += all_LC[IN_FLIGHT, c] - own_LC[IN_FLIGHT, c]
                w.seen.waiting_prompt_tokens_C[c] += all_LC[PROMPTS, c] - own_LC[PROMPTS, c]
                w.seen.remaining_output_tokens_C[c] += all_LC[REMAINING, c] - own_LC[REMAINING, c]
            told = 0.0
            for r in range(len(w.routers)):
                if r == router:
                    continue
                told += w.ring_rate_SR2[newest, r, 0]
                long += w.ring_rate_SR2[newest, r, 1]
            clock.others_rps = traffic.others_rate_rps(own, told, w.ring_s[newest])
            short += clock.others_rps
    clock.own_share = 1.0
    if long > 0.0:
        clock.own_share = own_long / long
    clock.burstiness = traffic.burstiness(own)
    clock.rate_short = short
    clock.rate_long = long


@jit_inner
def keep_room(w: World, router: int, now_s: float) -> None:
    """Raises the rates just seen to what room is kept for."""
    clock, own = w.clock[0], w.routers[router]
    reserve.note(own, clock.rate_short, traffic.age_s(own, now_s), now_s)
    least_rps = reserve.least_rate_rps(own, clock.reserve)
    clock.rate_short = max(clock.rate_short, least_rps)
    clock.rate_long = max(clock.rate_long, least_rps)
    clock.own_rate = max(clock.own_rate, least_rps * clock.own_share)


@jit_inner
def pressure_on(w: World, i: int, now_s: float) -> float:
    """Returns the pressure that a request feels; -1 if it has no target, or a soft deadline."""
    request = w.requests[i]
    if request.decay_s > 0.0 or not w.target_K[request.task] > 0.0:
        return -1.0
    window_s = request.deadline_s - request.arrival_s
    learned = pressures_of(w, request.router)
    return float(pressure.felt(learned, now_s, window_s, w.target_K))


@jit_inner
def find_seat(w: World, i: int, now_s: float) -> None:
    """Finds out where a request's conversation was served last, as its router remembers it."""
    clock, request = w.clock[0], w.requests[i]
    if request.conversation < 0 or clock.seat_margin < 0.0 or request.attempt > 0:
        return
    request.stay = seat.NEW
    known = w.seats_RV[request.router, request.conversation]
    c = known.candidate
    if c < 0 or now_s - known.at_s > clock.seat_memory_s:
        return
    request.seat = c
    request.cached = seat.cached_tokens(
        known.kept,
        request.prompt,
        w.passed_RC[request.router, c] - known.passed,
        w.fleet.prefix_room_C[c],
    )


@jit_inner
def show_cached(w: World, i: int) -> None:
    """Puts what is cached for a request into the fleet, in the place of the one before."""
    clock = w.clock[0]
    if clock.seat >= 0:
        w.fleet.cached_C[clock.seat] = 0.0
    clock.seat = w.requests[i].seat
    if clock.seat >= 0:
        w.fleet.cached_C[clock.seat] = w.requests[i].cached


@jit_inner
def is_impossible(w: World, i: int, now_s: float, event_tokens: float) -> bool:
    """Returns whether a request would be refused with nothing under way, too."""
    request = w.requests[i]
    least_s = safety.least_idle_s(
        w.fleet,
        w.scratch.load,
        w.allowed_C,
        request.prompt,
        event_tokens,
        w.decided.predicted_s_C,
        request.interval_s,
    )
    return not safety.in_reach(least_s, request.deadline_s - now_s, w.clock[0].optimism)


@jit_inner
def prepare(w: World, i: int, now_s: float) -> bool:
    """Fills view and mask for a request's decision; False if it is refused or cannot be served."""
    clock = w.clock[0]
    request = w.requests[i]
    find_seat(w, i, now_s)
    show_cached(w, i)
    request.predicted = max(1, int(w.output_RK[request.router, request.task] + 0.5))
    own = w.routers[request.router]
    if request.attempt == 0:
        priority.arrive(own, request.place)
    see(w, request.router, now_s)
    if clock.others_rps >= 0.0:
        traffic.note_others(own, clock.others_rps)
    if clock.reserve > 0.0:
        keep_room(w, request.router, now_s)
    draw = uniform(w)
    count = kernels.allowed_mask(w.fleet, request.task, 0.0, -1, draw, w.allowed_C)
    if count == 0:
        settle(w, i, FAILED, now_s)
        return False
    event_tokens = 1.0 if request.first_token != 0 else float(request.predicted)
    window_s = request.deadline_s - request.arrival_s
    if clock.admission != 0 and request.decay_s <= 0.0:
        safety.relax(own, now_s, window_s)
        felt = pressure_on(w, i, now_s)
        factor = safety.admission_factor(own, clock.optimism)
        if felt >= 0.0:
            ratio = slowdown.mean_ratio(own, now_s, window_s)
            is_floored = pressure.is_floored(felt)
            factor = safety.target_factor(own, clock.optimism, clock.pessimism, is_floored, ratio)
        factor *= priority.factor(priority.log_caution(own, request.place))
        admitted = safety.admit(
            w.fleet,
            w.seen,
            w.allowed_C,
            request.deadline_s - now_s,
            request.prompt,
            event_tokens,
            factor,
            w.decided.predicted_s_C,
            request.interval_s,
        )
        if not admitted and request.attempt == 0 and is_impossible(w, i, now_s, event_tokens):
            request.impossible = 1
        if request.attempt == 0 and request.impossible == 0:
            priority.learn(own, request.place, not admitted)
        if not admitted:
            if request.impossible == 0:
                own.refused_s = now_s
            settle(w, i, REFUSED, now_s)
            return False
    is_seat_open = clock.seat >= 0 and w.allowed_C[clock.seat]
    clock.stays = int(
        home.stays(
            w.fleet,
            w.seen,
            w.allowed_C,
            request.deadline_s - now_s,
            request.prompt,
            event_tokens,
            w.decided.predicted_s_C,
            request.interval_s,
        )
    )
    if is_seat_open:
        w.allowed_C[clock.seat] = True
    return True


@jit_inner
def usable(w: World) -> FleetArrays:
    """Returns the fleet as the request at hand sees it: all of it, or what is home."""
    seen: FleetArrays = w.fleet
    if w.clock[0].stays != 0:
        seen = home.at_home(w.fleet, w.usable_C)
    return seen


@jit_inner
def try_rescue(w: World, key: int, now_s: float) -> None:
    """Moves a request that is about to miss to a smaller tier that would make it, if one would."""
    clock = w.clock[0]
    i = key // 4
    request = w.requests[i]
    if request.attempt != key % 4 or request.rescued != 0:
        return
    if request.status != WAITING and request.status != RUNNING:
        return
    # Nothing may have reached the client: where tokens have their due times, answers are streamed.
    is_streamed = request.first_token != 0 or request.interval_s > 0.0
    if is_streamed and request.status == RUNNING and request.first_token_s <= now_s:
        return
    c = request.candidate
    done = 0
    if request.status == RUNNING:
        done = w.candidates[c].iteration - request.first_iteration
    see(w, request.router, now_s)
    show_cached(w, i)
    slack_s = request.deadline_s - now_s
    left = float(max(1, request.predicted - done))
    if request.first_token != 0:
        left = 1.0
    miss = safety.about_to_miss(
        w.fleet, w.seen, c, slack_s, request.counted, left, done == 0, clock.optimism,
        request.interval_s,
    )  # fmt: skip
    if not miss:
        return
    full = 1.0 if request.first_token != 0 else float(request.predicted)
    w.seen.in_flight_C[c] -= 1.0
    w.seen.remaining_output_tokens_C[c] -= max(1, request.predicted - done)
    if done == 0:
        w.seen.waiting_prompt_tokens_C[c] -= request.counted
    kernels.allowed_mask(w.fleet, request.task, 0.0, -1, 0.0, w.allowed_C)
    predicted_s_C = w.decided.predicted_s_C
    kernels.predict_latency_s(
        w.fleet, w.seen, request.prompt, full, predicted_s_C, 0.0, kernels.PERSISTENCE, 0,
        kernels.ALL, request.interval_s,
    )  # fmt: skip
    target = safety.choose_rescue(
        w.fleet, w.allowed_C, c, request.task, slack_s, clock.margin, predicted_s_C
    )
    if target < 0:
        return
    teach_slowdown(w, i, now_s)
    teach_target(w, i, now_s, 0.0, pressure.RESCUED)
    take_out(w, i)
    request.rescued = 1
    clock.rescues += 1
    dispatch(w, i, target, now_s)


@jit_inner
def fleet_event(w: World, k: int, now_s: float) -> None:
    """Carries out a loss, a return or a slow-down of a device."""
    event = w.fleet_events[k]
    device = w.devices[event.device]
    if event.kind == EVENT_LOST:
        lose_device(w, event.device, now_s)
    elif event.kind == EVENT_BACK:
        device.alive = 1
        for s in range(device.slots):
            w.fleet.availability_C[w.slots_DS[event.device, s]] = 1.0
    elif event.kind == EVENT_SLOW:
        device.slow = event.value


@jit_unmanaged
def advance(w: World) -> int:
    """Runs the world to the next decision; returns its request, or -1 when all is done."""
    clock = w.clock[0]
    count = len(w.requests)
    while True:
        if clock.pending > 0:
            clock.pending -= 1
            i = w.pending_N[clock.pending]
            if prepare(w, i, clock.now_s):
                return int(i)
            continue
        # The earliest of all sources; at equal times devices come before arrivals.
        source = -1
        device = -1
        time_s = np.inf
        for d in range(len(w.devices)):
            if w.devices[d].end_s < time_s:
                time_s = w.devices[d].end_s
                device = d
                source = 0
        if clock.heap > 0 and w.heap_s[0] < time_s:
            time_s = w.heap_s[0]
            source = 1
        while clock.cancels < count:
            i = w.cancel_N[clock.cancels]
            request = w.requests[i]
            if request.status > RUNNING:
                clock.cancels += 1
                continue
            if request.cancel_s < time_s:
                time_s = request.cancel_s
                source = 2
            break
        if clock.fleet_events < len(w.fleet_events):
            event_s = w.fleet_events[clock.fleet_events].time_s
            if event_s < time_s:
                time_s = event_s
                source = 3
        if clock.arrivals < count and w.requests[clock.arrivals].arrival_s < time_s:
            time_s = w.requests[clock.arrivals].arrival_s
            source = 4
        if source < 0:
            return -1
        if len(w.routers) > 1 and clock.next_tick_s < time_s:
            clock.now_s = clock.next_tick_s
            take_snapshot(w, clock.now_s)
            continue
        clock.now_s = time_s
        clock.events += 1
        if source == 0:
            finish_iteration(w, device, time_s)
        elif source == 1:
            try_rescue(w, heap_pop(w), time_s)
        elif source == 2:
            cancel_late(w, w.cancel_N[clock.cancels], time_s)
            clock.cancels += 1
        elif source == 3:
            fleet_event(w, clock.fleet_events, time_s)
            clock.fleet_events += 1
        else:
            i = clock.arrivals
            clock.arrivals += 1
            request = w.requests[i]
            own = w.routers[request.router]
            before, place_before = traffic.remembered(own), own.mean_place
            traffic.count_arrival(own, time_s, request.prompt)
            if prepare(w, i, time_s):
                return int(i)
            if request.impossible != 0:
                traffic.restore(own, before)
                own.mean_place = place_before


@jit_unmanaged
def query_for(w: World, i: int, now_s: float) -> Query:
    """Returns the request and the traffic as its router saw them in `prepare`."""
    clock = w.clock[0]
    request = w.requests[i]
    predicted = float(request.predicted)
    own = w.routers[request.router]
    window_s = request.deadline_s - request.arrival_s
    felt = pressure_on(w, i, now_s)
    request.floored = 1 if pressure.is_floored(felt) else 0
    is_small = felt >= 0.0 and pressure.is_small(felt, now_s, window_s)
    q = Query(
        int(request.task),
        request.deadline_s - now_s,
        request.prompt,
        predicted,
        1.0 if request.first_token != 0 else predicted,
        request.decay_s,
        own.mean_prompt,
        clock.rate_short,
        clock.rate_long,
        clock.state_age_s,
        uniform(w),
        clock.own_share,
        clock.own_rate,
        clock.burstiness,
        slowdown.factor(own, now_s, window_s),
        max(0.0, felt),
        1.0 if is_small else 0.0,
        priority.log_price(own, request.place),
        request.interval_s,
    )
    return home.own_traffic(q) if clock.stays != 0 else q


@jit_unmanaged
def fill_features(w: World, i: int, q: Query, params_P: np.ndarray) -> None:
    """Computes the features of the decision at hand, and the price score they correct."""
    ledger_LC = w.ledger_RLC[w.requests[i].router]
    own = LoadArrays(ledger_LC[IN_FLIGHT], ledger_LC[PROMPTS], ledger_LC[REMAINING])
    features.compute_features(
        usable(w),
        w.seen,
        own,
        w.allowed_C,
        q,
        params_P,
        w.scratch,
        True,
        w.features_CF,
    )


@jit_inner
def decide(
    w: World,
    i: int,
    row: int,
    q: Query,
    params_P: np.ndarray,
    weights: Weights,
    with_features: bool,
) -> int:
    """Returns the candidate the policy chooses for a request, by the router's own decision.

    A picker then chooses again inside the tier, if one was asked for. A request of a conversation
    may stay where that was served last. `with_features` fills the features of all candidates, which
    policies may do without.
    """
    ledger_LC = w.ledger_RLC[w.requests[i].router]
    own = LoadArrays(ledger_LC[IN_FLIGHT], ledger_LC[PROMPTS], ledger_LC[REMAINING])
    action = decision.decide(
        row,
        usable(w),
        w.seen,
        own,
        w.allowed_C,
        q,
        params_P,
        weights,
        w.scratch,
        w.features_CF,
        w.decided,
        w.clock[0].every != 0,
    )
    chosen = w.clock[0].picker
    picked = action
    if chosen > 0 and action >= 0:
        tier = w.fleet.tier_C[action]
        picked = picker.pick(
            chosen,
            w.fleet,
            w.seen,
            w.allowed_C,
            q,
            tier,
            w.picked_T,
            uniform(w),
            w.decided.work_s_C,
        )
    request = w.requests[i]
    if request.seat >= 0 and picked >= 0 and request.attempt == 0:
        request.stay = decision.stay_seated(
            row,
            w.fleet,
            w.allowed_C,
            q,
            w.scratch,
            w.decided,
            picked,
            request.seat,
            w.clock[0].seat_margin,
        )
        if request.stay == seat.KEPT:
            picked = request.seat
    if with_features:
        fill_features(w, i, q, params_P if row == decision.DQN_ROW else w.base_P)
    return int(picked)


@jit
def explore(w: World, i: int, action: int) -> int:
    """Replaces the action by one of the episode's tier mix with probability epsilon.

    A tier is drawn from the mix (over tiers that are allowed), then its candidate: half the time
    the one of least predicted latency, else any. The request keeps the probability of what came.
    """
    clock = w.clock[0]
    request = w.requests[i]
    request.probability = 1.0
    if clock.epsilon <= 0.0:
        return action
    count_T = np.zeros(len(w.mix_T))
    best_T = np.full(len(w.mix_T), -1)
    for c in range(len(w.candidates)):
        if w.allowed_C[c]:
            t = w.fleet.tier_C[c]
            count_T[t] += 1.0
            if best_T[t] < 0 or w.decided.predicted_s_C[c] < w.decided.predicted_s_C[best_T[t]]:
                best_T[t] = c
    total = 0.0
    for t in range(len(w.mix_T)):
        if count_T[t] > 0.0:
            total += w.mix_T[t]
    chosen = action
    if total > 0.0 and uniform(w) < clock.epsilon:
        request.explored = 1
        left = uniform(w) * total
        tier = -1
        for t in range(len(w.mix_T)):
            if count_T[t] > 0.0 and (tier < 0 or left >= 0.0):
                tier = t
                left -= w.mix_T[t]
        chosen = best_T[tier]
        if uniform(w) < 0.5:
            skip = int(uniform(w) * count_T[tier])
            for c in range(len(w.candidates)):
                if w.allowed_C[c] and w.fleet.tier_C[c] == tier:
                    if skip == 0:
                        chosen = c
                    skip -= 1
    if total > 0.0:
        t = w.fleet.tier_C[chosen]
        share = 0.5 / count_T[t]
        if best_T[t] == chosen:
            share += 0.5
        request.probability = clock.epsilon * w.mix_T[t] / total * share
        if chosen == action:
            request.probability += 1.0 - clock.epsilon
    return int(chosen)


@jit_unmanaged
def apply(w: World, i: int, action: int) -> None:
    """Carries a decision out: dispatch, and the timer of a possible rescue."""
    clock = w.clock[0]
    request = w.requests[i]
    now_s = clock.now_s
    clock.decisions += 1
    first = request.attempt == 0
    request.predicted_s = w.decided.predicted_s_C[action]
    if first:
        request.action = action
        if action == request.seat and request.cached > 0.0:
            traffic.count_cached(w.routers[request.router], request.cached)
        if request.predicted_s > request.deadline_s - now_s:
            teach_target(w, i, now_s, 0.0, pressure.LATE_AHEAD)
    moment_s = -1.0
    if clock.rescue != 0 and request.rescued == 0 and request.decay_s <= 0.0:
        least_s = safety.least_rescue_s(
            w.fleet,
            w.seen,
            w.allowed_C,
            action,
            request.prompt,
            1.0 if request.first_token != 0 else float(request.predicted),
            w.decided.work_s_C,
            request.interval_s,
        )
        moment_s = safety.rescue_at_s(
            least_s, request.deadline_s - now_s, clock.margin, clock.guard_s
        )
    dispatch(w, i, action, now_s)
    if moment_s >= 0.0 and request.status != FAILED:
        heap_push(w, now_s + moment_s, i * 4 + request.attempt)


@jit
def run(w: World, row: int, params_P: np.ndarray, weights: Weights) -> None:
    """Runs the world to its end under one policy, recording every stride-th decision."""
    clock = w.clock[0]
    while True:
        i = advance(w)
        if i < 0:
            return
        request = w.requests[i]
        first = request.attempt == 0
        record = first and clock.stride > 0 and clock.decisions % clock.stride == 0
        record = record and clock.records < len(w.record_id)
        q = query_for(w, i, clock.now_s)
        action = decide(w, i, row, q, params_P, weights, record)
        if action < 0:
            settle(w, i, FAILED, clock.now_s)
            continue
        if first and request.stay != seat.KEPT:
            action = explore(w, i, action)
        if record:
            k = clock.records
            clock.records += 1
            request.row = k
            w.record_id[k] = i
            w.record_CF[k] = w.features_CF
            w.record_allowed_C[k] = w.allowed_C
        apply(w, i, action)


__all__ = ["PENDING", "advance", "apply", "decide", "query_for", "run", "start_iteration"]
