"""Devices: queues, batches, iterations, answers. Compiled; every function works on records.

One iteration of one tier runs on a device at a time; the tiers with work take turns. An iteration
of a batch of b sequences that admits p prompt tokens takes step + per_sequence b + per_prompt p, in
the mean: where the profile has a spread, each draws its own factor (`router.iteration_spread`). It
gives every sequence one token, those just admitted their first. A sequence therefore ends a known
number of its tier's iterations after it was admitted, which is where it is filed: an iteration
costs nothing per sequence, only per sequence that starts or ends. When iterations ended is kept
for as long as an answer may last, so one that ends knows when each of its tokens came.

A tier's room for keys and values is finite if its profile says so. A sequence takes the room of its
prompt and its whole answer when it is admitted and gives it back when it leaves, so nothing that
runs ever has to be thrown out; the queue waits in order until its head fits. What is larger than
the room is refused at dispatch, so a tier without a running sequence has room for its head, and no
queue waits for ever.

A tier may have room beside that for the prefixes of conversations whose requests have ended. What
is cached of a prompt takes no time when it is admitted; where room is short, what was used longest
ago goes. Requests without a conversation leave nothing there.
"""

from __future__ import annotations

import numpy as np

from router.pressure import Pressures
from trainer.simulation.compiled import (
    iteration_spread,
    jit_inner,
    pressure,
    reward,
    safety,
    seat,
    slowdown,
    traffic,
)
from trainer.simulation.dice import device_uniform
from trainer.simulation.state import (
    ADMITTED,
    ANSWERED,
    CANCELLED,
    DECREASING,
    FAILED,
    IN_FLIGHT,
    MOST_ATTEMPTS,
    PENDING,
    PROMPTS,
    REFUSED,
    REMAINING,
    RUNNING,
    WAITING,
    World,
)


@jit_inner
def cached_prefix(w: World, i: int, c: int) -> float:
    """Returns how many tokens of a request's prompt a candidate has cached.

    In whole blocks, and all but one at most, as routers expect it (`router.seat`).
    """
    v = w.requests[i].conversation
    if v < 0:
        return 0.0
    tokens, room = w.cached_CV[c, v].tokens, w.candidates[c].prefix_room
    return float(seat.cached_tokens(tokens, w.requests[i].prompt, 0.0, room))


@jit_inner
def forget_prefix(w: World, c: int, v: int) -> None:
    """Takes a conversation out of a candidate's cache, if it is in it."""
    cached, candidate = w.cached_CV[c, v], w.candidates[c]
    if not cached.tokens > 0.0:
        return
    candidate.prefix_used -= cached.tokens
    cached.tokens = 0.0
    if cached.newer >= 0:
        w.cached_CV[c, cached.newer].older = cached.older
    else:
        candidate.newest = cached.older
    if cached.older >= 0:
        w.cached_CV[c, cached.older].newer = cached.newer
    else:
        candidate.oldest = cached.newer


@jit_inner
def keep_prefix(w: World, c: int, v: int, tokens: float) -> None:
    """Puts a conversation into a candidate's cache as the one used last; the oldest make room."""
    forget_prefix(w, c, v)
    candidate = w.candidates[c]
    if not 0.0 < tokens <= candidate.prefix_room:
        return
    cached = w.cached_CV[c, v]
    cached.tokens = tokens
    cached.newer = -1
    cached.older = candidate.newest
    if candidate.newest >= 0:
        w.cached_CV[c, candidate.newest].newer = v
    else:
        candidate.oldest = v
    candidate.newest = v
    candidate.prefix_used += tokens
    while candidate.prefix_used > candidate.prefix_room:
        forget_prefix(w, c, candidate.oldest)


@jit_inner
def use_prefix(w: World, c: int, v: int) -> None:
    """Makes a conversation that is in a candidate's cache the one used last."""
    tokens = w.cached_CV[c, v].tokens
    if tokens > 0.0:
        keep_prefix(w, c, v, tokens)


@jit_inner
def take_seat(w: World, i: int, now_s: float) -> None:
    """Keeps what an answered request leaves behind: its prefix in the cache, its router's memory.

    A cache has the keys and values of prompt and answer once both are computed.
    """
    request = w.requests[i]
    c, v = request.candidate, request.conversation
    tokens = request.prompt + request.output
    w.passed_RC[request.router, c] += tokens
    if v < 0:
        return
    keep_prefix(w, c, v, tokens)
    taken = w.seats_RV[request.router, v]
    taken.candidate = c
    taken.kept = tokens
    taken.passed = w.passed_RC[request.router, c]
    taken.at_s = now_s


@jit_inner
def take_out(w: World, i: int) -> None:
    """Takes a request off its candidate: out of queue or batch, and out of the ledger."""
    request = w.requests[i]
    c = request.candidate
    candidate = w.candidates[c]
    ring = w.bucket_CM.shape[1]
    ledger_LC = w.ledger_RLC[request.router]
    waiting = request.status == WAITING
    if request.previous >= 0:
        w.requests[request.previous].next = request.next
    elif waiting:
        candidate.head = request.next
    else:
        w.bucket_CM[c, request.last_iteration % ring] = request.next
    if request.next >= 0:
        w.requests[request.next].previous = request.previous
    elif waiting:
        candidate.tail = request.previous
    done = 0
    if waiting:
        candidate.queued -= 1
        ledger_LC[PROMPTS, c] -= request.counted
    else:
        candidate.running -= 1
        candidate.kv_used -= request.prompt + request.output
        if candidate.running == 0:  # fractions of tokens leave no rounding error behind
            candidate.kv_used = 0.0
        done = candidate.iteration - request.first_iteration
        if done == 0:
            ledger_LC[PROMPTS, c] -= request.counted
            ledger_LC[ADMITTED, c] -= request.counted
        if done < request.predicted - 1:
            stop = (request.first_iteration + request.predicted - 2) % ring
            ledger_LC[DECREASING, c] -= 1.0
            w.stop_RCM[request.router, c, stop] -= 1.0
    ledger_LC[IN_FLIGHT, c] -= 1.0
    ledger_LC[REMAINING, c] -= max(1, request.predicted - done)


@jit_inner
def start_iteration(w: World, d: int, now_s: float) -> None:
    """Starts the next iteration of a device's next tier with work; idles if there is none."""
    device = w.devices[d]
    device.active = -1
    device.end_s = np.inf
    if device.alive == 0:
        return
    ring = w.bucket_CM.shape[1]
    for k in range(1, device.slots + 1):
        slot = (device.last_slot + k) % device.slots
        c = w.slots_DS[d, slot]
        candidate = w.candidates[c]
        if candidate.running + candidate.queued == 0:
            continue
        # How many of the queue fit; a prompt beyond the limit goes alone rather than never.
        tokens = 0.0
        admitted = 0
        used = candidate.kv_used
        i = candidate.head
        while i >= 0 and candidate.running + admitted < candidate.max_batch:
            whole = w.requests[i].prompt
            prompt = whole - cached_prefix(w, i, c)
            if admitted > 0 and tokens + prompt > candidate.max_prompt:
                break
            used += whole + w.requests[i].output
            if used > candidate.kv_room:
                break
            candidate.kv_used = used
            tokens += prompt
            admitted += 1
            i = w.requests[i].next
        batch = candidate.running + admitted
        duration_s = candidate.step_s + candidate.per_sequence_s * batch
        duration_s = (duration_s + candidate.per_prompt_token_s * tokens) * device.slow
        if candidate.iteration_cv > 0.0:
            first, second = device_uniform(w), device_uniform(w)
            duration_s *= iteration_spread.stretch(candidate.iteration_cv, first, second)
        end_s = now_s + duration_s
        for _ in range(admitted):
            i = candidate.head
            request = w.requests[i]
            candidate.head = request.next
            request.status = RUNNING
            if request.conversation >= 0:
                request.hit = cached_prefix(w, i, c)
                use_prefix(w, c, request.conversation)
            request.first_iteration = candidate.iteration
            request.last_iteration = candidate.iteration + request.output - 1
            request.first_token_s = end_s
            bucket = request.last_iteration % ring
            request.next = w.bucket_CM[c, bucket]
            request.previous = -1
            if request.next >= 0:
                w.requests[request.next].previous = i
            w.bucket_CM[c, bucket] = i
            w.ledger_RLC[request.router, ADMITTED, c] += request.counted
            if request.predicted >= 2:
                w.ledger_RLC[request.router, DECREASING, c] += 1.0
                stop = (request.first_iteration + request.predicted - 2) % ring
                w.stop_RCM[request.router, c, stop] += 1.0
        if candidate.head >= 0:
            w.requests[candidate.head].previous = -1
        else:
            candidate.tail = -1
        candidate.queued -= admitted
        candidate.running = batch
        device.active = c
        device.last_slot = slot
        device.end_s = end_s
        w.clock[0].iterations += 1
        return


@jit_inner
def worst_token_s(w: World, i: int) -> float:
    """Returns when the latest token of an answer came, less what it was due after the first one."""
    request = w.requests[i]
    end_s_M = w.token_s_CM[request.candidate]
    worst_s = request.first_token_s
    for k in range(1, request.output):
        came_s = end_s_M[(request.first_iteration + k) % len(end_s_M)]
        worst_s = max(worst_s, came_s - k * request.interval_s)
    return float(worst_s)


@jit_inner
def settle(w: World, i: int, status: int, now_s: float) -> None:
    """Ends a request that has left its candidate (or never had one), with its reward."""
    request = w.requests[i]
    request.status = status
    request.end_s = now_s
    request.on_time = 0
    request.reward = 0.0
    if status == ANSWERED:
        overhead_s = w.candidates[request.candidate].overhead_s
        request.end_s = now_s + overhead_s
        event_s = request.end_s
        if request.first_token != 0:
            event_s = request.first_token_s + overhead_s
        elif request.interval_s > 0.0:
            event_s = worst_token_s(w, i) + overhead_s
        late_s = event_s - request.deadline_s
        quality = w.fleet.quality_KC[request.task, request.candidate]
        request.reward = reward.answer_reward(quality, late_s, request.decay_s)
        if late_s <= 0.0:
            request.on_time = 1
        mean = w.output_RK[request.router, request.task]
        w.output_RK[request.router, request.task] = traffic.moved(mean, request.output)
        take_seat(w, i, now_s)
    # What was rescued or sent again earned its first choice nothing.
    request.first_reward = 0.0
    if request.attempt <= 1:
        request.first_reward = request.reward
    w.clock[0].reward_sum += request.reward
    teach_admission(w, i, now_s)
    if status != FAILED and request.impossible == 0:
        teach_target(w, i, now_s, 1.0, 1.0 - request.on_time)
    teach_slowdown(w, i, now_s)


@jit_inner
def pressures_of(w: World, router: int) -> Pressures:
    """Returns what a router has learned of its targets."""
    return Pressures(w.pressure_RK[router], w.ends_RK[router], w.pressed_s_R1[router])


@jit_inner
def teach_target(w: World, i: int, now_s: float, ended: float, missed: float) -> None:
    """Moves the router's pressure of a request's task; soft deadlines teach nothing."""
    request = w.requests[i]
    if request.decay_s > 0.0:
        return
    pressure.learn(
        pressures_of(w, request.router),
        now_s,
        request.deadline_s - request.arrival_s,
        w.target_K,
        request.task,
        ended,
        missed,
        pressure.HIGHEST,
    )


@jit_inner
def teach_admission(w: World, i: int, now_s: float) -> None:
    """Lets the router's admission learn from a settled request.

    Of a hard deadline, admitted and served to its end or its deadline. One that was dispatched anew
    after its device was lost says nothing about predictions; nor, where a target is held, does one
    that had another tier to go to: smaller tiers come before refusals.
    """
    clock = w.clock[0]
    request = w.requests[i]
    served = request.status == ANSWERED or request.status == CANCELLED
    resent = request.attempt - request.rescued > 1
    if clock.admission == 0 or request.decay_s > 0.0 or not served or resent:
        return
    if w.target_K[request.task] > 0.0 and request.floored == 0:
        return
    safety.learn_end(
        w.routers[request.router],
        now_s,
        request.deadline_s - request.arrival_s,
        request.on_time == 0,
        clock.optimism,
        clock.pessimism,
    )


@jit_inner
def teach_slowdown(w: World, i: int, now_s: float) -> None:
    """Lets the router compare a request that ends, or is rescued, with its first prediction.

    Deadlines of the first token or of each token teach nothing: their predictions are of another
    event than the end. Nor do requests that were sent twice, or that were lost.
    """
    request = w.requests[i]
    lost = request.status == FAILED or request.status == REFUSED
    if lost or request.attempt != 1 or request.first_token != 0 or request.interval_s > 0.0:
        return
    finished = request.status == ANSWERED
    end_s = request.end_s if finished else now_s
    slowdown.compare(
        w.routers[request.router],
        now_s,
        request.deadline_s - request.arrival_s,
        end_s - request.arrival_s,
        request.predicted_s,
        finished,
    )


@jit_inner
def finish_iteration(w: World, d: int, now_s: float) -> None:
    """Ends the iteration a device is running: tokens, answers; then starts the next."""
    c = w.devices[d].active
    candidate = w.candidates[c]
    ring = w.bucket_CM.shape[1]
    slot = candidate.iteration % ring
    for r in range(w.ledger_RLC.shape[0]):
        ledger_LC = w.ledger_RLC[r]
        if ledger_LC[IN_FLIGHT, c] <= 0.0:
            continue
        ledger_LC[REMAINING, c] -= ledger_LC[DECREASING, c]
        ledger_LC[DECREASING, c] -= w.stop_RCM[r, c, slot]
        ledger_LC[PROMPTS, c] -= ledger_LC[ADMITTED, c]
        ledger_LC[ADMITTED, c] = 0.0
        w.stop_RCM[r, c, slot] = 0.0
    w.token_s_CM[c, slot] = now_s
    candidate.iteration += 1
    i = w.bucket_CM[c, slot]
    while i >= 0:
        following = w.requests[i].next
        take_out(w, i)
        settle(w, i, ANSWERED, now_s)
        i = following
    start_iteration(w, d, now_s)


@jit_inner
def dispatch(w: World, i: int, c: int, now_s: float) -> None:
    """Sends a request to a candidate's queue; one that could never run there is refused."""
    request = w.requests[i]
    candidate = w.candidates[c]
    request.candidate = c
    request.attempt += 1
    if w.devices[candidate.device].alive == 0:
        settle(w, i, FAILED, now_s)
        return
    if request.prompt + request.output > candidate.kv_room:
        settle(w, i, REFUSED, now_s)
        return
    request.status = WAITING
    request.counted = request.prompt
    if c == request.seat:
        request.counted -= request.cached
    request.next = -1
    request.previous = candidate.tail
    if candidate.tail >= 0:
        w.requests[candidate.tail].next = i
    else:
        candidate.head = i
    candidate.tail = i
    candidate.queued += 1
    ledger_LC = w.ledger_RLC[request.router]
    ledger_LC[IN_FLIGHT, c] += 1.0
    ledger_LC[PROMPTS, c] += request.counted
    ledger_LC[REMAINING, c] += request.predicted
    if w.devices[candidate.device].active < 0:
        start_iteration(w, candidate.device, now_s)


@jit_inner
def cancel_late(w: World, i: int, now_s: float) -> None:
    """Cancels a request that nobody waits for any more."""
    request = w.requests[i]
    if request.status != WAITING and request.status != RUNNING:
        return
    take_out(w, i)
    settle(w, i, CANCELLED, now_s)


@jit_inner
def lose_device(w: World, d: int, now_s: float) -> None:
    """Loses a device: all it held is pending again where retries are on, else failed."""
    device = w.devices[d]
    device.alive = 0
    device.active = -1
    device.end_s = np.inf
    for k in range(device.slots):
        c = w.slots_DS[d, k]
        w.fleet.availability_C[c] = 0.0
        while w.candidates[c].head >= 0:
            give_up(w, w.candidates[c].head, now_s)
        for m in range(w.bucket_CM.shape[1]):
            while w.bucket_CM[c, m] >= 0:
                give_up(w, w.bucket_CM[c, m], now_s)
        while w.candidates[c].newest >= 0:
            forget_prefix(w, c, w.candidates[c].newest)
        # An iteration that never ended leaves its number to the next one.


@jit_inner
def give_up(w: World, i: int, now_s: float) -> None:
    """Takes a request off a lost device."""
    take_out(w, i)
    clock = w.clock[0]
    if clock.retry == 0 or w.requests[i].attempt >= MOST_ATTEMPTS:
        settle(w, i, FAILED, now_s)
        return
    w.requests[i].status = PENDING
    w.pending_N[clock.pending] = i
    clock.pending += 1
