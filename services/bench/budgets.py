"""What each metric is, what it stands beside and how far it may go; some are told, not judged."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Literal

RATE = "1/CPU s"
"""Per second of CPU time of the server's process: one core carries this much."""
DOORS: Mapping[str, str] = {
    "generate": "`GenerateStream`",
    "kserve": "KServe, `ModelStreamInfer`",
    "openai": "OpenAI-shaped, with its router",
    "envoy": "Envoy, with its router",
}
"""Doors by what their metrics of the first token call them."""
LOADS = ("low", "half")
PERCENTILES: Mapping[str, float] = {"p50": 0.50, "p99": 0.99}


def first_token(door: str, load: str, percentile: str) -> str:
    """Returns the name of a metric of the time to the first token."""
    return f"first_token_{door}_{load}_{percentile}"


FIRST_TOKENS: Mapping[str, tuple[str, str, str]] = {
    first_token(*each): each for each in itertools.product(DOORS, LOADS, PERCENTILES)
}
"""Those metrics, each with its door, its load and its percentile."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """One metric's budget.

    Attributes:
        what: What is measured.
        beside: What the reference is; empty for none.
        unit: Unit of value and reference.
        limit: The budget; None where there is none, and the metric is only told.
        is_ceiling: True for at most, False for at least.
        of: What is held against the limit: ``ratio`` (value over reference) or ``value``.
    """

    what: str
    beside: str
    unit: str
    limit: float | None = None
    is_ceiling: bool = True
    of: Literal["ratio", "value"] = "ratio"

    @property
    def text(self) -> str:
        """For instance ``<= 2x`` or ``<= 0.02``; ``-`` without a limit."""
        if self.limit is None:
            return "-"
        return f"{'<=' if self.is_ceiling else '>='} {self.limit:g}" + "x" * (self.of == "ratio")


BUDGETS: Mapping[str, Budget] = {
    "decision_dqn_12": Budget(
        "learned decision with its observation, 4 devices x 3 tiers, median",
        "bare forward pass of its network in numpy, median", "us", 2.0, True,
    ),
    "decision_dqn_12_p99": Budget(
        "the same, 99th percentile", "bare forward pass, median", "us", 4.0, True
    ),
    "decision_price_12": Budget(
        "decision of the price policy, 4 devices x 3 tiers, median",
        "bare forward pass, median", "us", 1.0, True,
    ),
    "decision_dqn_192": Budget(
        "learned decision, 64 devices x 3 tiers, median", "decision_dqn_12", "us", 6.0, True
    ),
    "decision_dqn_3072": Budget(
        "learned decision, 1,024 devices x 3 tiers, median", "decision_dqn_12", "us", 20.0, True
    ),
    "route": Budget("Route, requests", "bare echo of the same sizes", RATE, 0.70, False),
    "generate": Budget(
        "Generate, requests, telemetry on at 10 %", "bare pass-through", RATE, 0.80, False
    ),
    "generate_added_p50": Budget(
        "what the router adds to the median at half load", "what the pass-through adds", "us",
        1.5, True,
    ),
    "generate_added_p99": Budget(
        "what the router adds to the 99th percentile at half load", "what the pass-through adds",
        "us", 2.0, True,
    ),
    "generate_dqn": Budget(
        "Generate with the learned policy, requests", "Generate with price", RATE, 0.97, False
    ),
    "stream": Budget(
        "GenerateStream, messages from the tier", "bare relay, messages", RATE, 0.90, False
    ),
    "stream_coalesced": Budget(
        "GenerateStream, tokens of a tier that sends eight at a time",
        "bare relay of single tokens",
        RATE, 5.0, False,
    ),
    "kserve": Budget(
        "ModelInfer of the KServe door, requests", "bare pass-through", RATE, 0.90, False
    ),
    "kserve_stream": Budget(
        "ModelStreamInfer of the KServe door, messages from the tier", "bare relay, messages",
        RATE, 0.90, False,
    ),
    "kserve_stream_coalesced": Budget(
        "ModelStreamInfer, tokens of a tier that sends eight at a time",
        "bare relay of single tokens",
        RATE, 5.0, False,
    ),
    "openai": Budget(
        "OpenAI-shaped door, chat completions", "bare relay from ASGI to gRPC", RATE, 0.70, False
    ),
    "openai_stream": Budget(
        "OpenAI-shaped door, streamed, events with a token", "bare relay from ASGI to gRPC",
        RATE, 0.70, False,
    ),
    "openai_litellm": Budget(
        "OpenAI-shaped door and its router together, chat completions",
        "LiteLLM proxy before the same server", RATE, 5.0, False,
    ),
    "openai_litellm_added_p50": Budget(
        "what door and router add to the median", "what LiteLLM proxy adds", "us", 0.2, True
    ),
    "envoy": Budget(
        "Envoy's door, CPU time of an exchange with the message of its end",
        "a picker whose answers are constant", "us", 1.4, True,
    ),
    "envoy_stream_128": Budget(
        "Envoy's door, tokens of streams of 128, by the CPU time of an exchange",
        "bare relay of single tokens", RATE, 10.0, False,
    ),
    "envoy_added_p50": Budget(
        "what asking a router adds to Envoy's median at half load",
        "what an Envoy adds that asks nobody", "us",
    ),
    "envoy_added_p99": Budget(
        "the same, 99th percentile", "what an Envoy adds that asks nobody", "us"
    ),
    **{
        name: Budget(
            f"added to the first token at {load} load, {percentile}: {DOORS[door]}",
            "the server asked directly", "us",
        )
        for name, (door, load, percentile) in FIRST_TOKENS.items()
    },
    "workers_2": Budget(
        "two workers behind one port, requests", "one worker", RATE, 0.90, False
    ),
    "state_64x64": Budget(
        "a router's share of a core, 64 routers x 64 endpoints, 12.5 states a second", "",
        "cores", 0.02, True, "value",
    ),
    "state_64x64_monitor": Budget(
        "the monitor's own share of a core", "", "cores", 0.20, True, "value"
    ),
    "state_256x1024": Budget(
        "a router's share of a core, 256 routers x 1,024 endpoints", "", "cores",
        0.10, True, "value",
    ),
}  # fmt: skip
