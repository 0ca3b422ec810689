"""Who is served when clients flood a router: `python -m tests.bench.fairness` (about 20 s).

Virtual time: a device that carries 25 requests a second, 20 s of each mix of clients, with shares
and without. Part of a client's requests that was answered in time.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.unit.services.router_inference.overload import on_time_share, overload

MIXES: tuple[tuple[Mapping[str, float], Mapping[str, float]], ...] = (
    ({"light": 1.0}, {"light": 10.0, "flood": 200.0}),
    ({"light": 1.0}, {"light": 5.0, "middle": 8.0, "flood": 200.0}),
    ({"a": 1.0}, {"a": 100.0, "b": 100.0}),
    ({"gold": 3.0}, {"gold": 100.0, "b": 100.0}),
)


def main() -> None:
    """Prints a table."""
    print("| asked for, requests/s | on time without shares | with shares | answered/s, both |")
    print("|---|---|---|---|")
    for weights, rates in MIXES:
        both = [overload(each, rates) for each in ({}, weights)]
        shown = [
            ", ".join(f"{name} {on_time_share(found):.2f}" for name, found in ends.items())
            for ends in both
        ]
        served = [sum(found["on_time"] for found in ends.values()) / 20.0 for ends in both]
        asked = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
        print(f"| {asked} | {shown[0]} | {shown[1]} | {served[0]:.1f}, {served[1]:.1f} |")


if __name__ == "__main__":
    main()
