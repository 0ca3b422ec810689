"""Retries are a share of recent requests."""

from __future__ import annotations

from services.router_inference.path.second_chance import RetryBudget


def test_the_retry_budget_is_a_share_of_requests() -> None:
    """A burst, then one retry per so many requests."""
    budget = RetryBudget(0.1, 2)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    for _ in range(11):
        budget.on_request()
    assert [budget.take() for _ in range(2)] == [True, False]
