"""When the first token of an answer is due whose beginning nobody tells."""

from __future__ import annotations

from router import kernels
from router.types import Request
from services.router_inference.job import Choice


def first_token_s(choice: Choice, request: Request) -> float:
    """Returns the predicted time from a decision to the first token, seconds.

    The decision's own prediction (`router.kernels.predict_latency_s`), with one token in the place
    of all: what is left of it beside hop and prompts is spread evenly over its cycles.
    """
    row, inputs = choice.action, choice.inputs
    fleet, own_LC, others_LC = inputs.fleet.arrays, inputs.own_LC, inputs.others_LC
    prompt_s_C = fleet.per_prompt_token_s_C
    # Plain numbers: every routed request asks, and arithmetic with those of numpy takes longer.
    seat = inputs.asked.seat
    new_tokens = request.prompt_tokens - (seat.cached_tokens if seat.row == row else 0.0)
    fixed_s: float = fleet.overhead_s_C.item(row) + new_tokens * prompt_s_C.item(row)
    for peer in fleet.peers_CP[row].tolist():
        if peer < 0:
            break
        fixed_s += (own_LC.item(1, peer) + others_LC.item(1, peer)) * prompt_s_C.item(peer)
    fixed_s *= inputs.slowness_D.item(fleet.device_C.item(row))
    in_flight: float = own_LC.item(0, row) + others_LC.item(0, row)
    limit: float = fleet.max_batch_C.item(row)
    waited = 0.5 if in_flight > 0.0 else 0.0
    if in_flight >= limit:
        left = own_LC.item(2, row) + others_LC.item(2, row)
        waited += (in_flight - limit + 1.0) / limit * left / in_flight
    left_s = max(0.0, choice.predicted_s - fixed_s)
    cycle_s = left_s / (waited + request.event_tokens)
    interval_s = request.token_interval_s
    if interval_s:
        # Of each cycle after the first one the prediction leaves out what the schedule grants.
        cycle_s = left_s / (waited + 1.0)
        if cycle_s > interval_s:
            granted_s = kernels.granted_s(cycle_s, request.event_tokens, interval_s)
            cycle_s = (left_s + granted_s) / (waited + request.event_tokens)
    return float(fixed_s + (waited + 1.0) * cycle_s)
