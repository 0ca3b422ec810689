"""Where requests come in at every door: checked, and counted where they are wrong."""

from __future__ import annotations

from services.common.clock import Clock
from services.common.errors import DomainError
from services.router_inference.doors.validation import Validator
from services.router_inference.job import Ask, Job
from services.router_inference.records.accounts import Accounts


class Intake:
    """Makes jobs of what was asked, as of now."""

    def __init__(self, *, validator: Validator, accounts: Accounts, clock: Clock) -> None:
        """Takes its parts."""
        self._validator = validator
        self._accounts = accounts
        self._clock = clock

    @property
    def max_prompt_bytes(self) -> int:
        """Longest prompt, bytes; of the whole body where a gateway carries it."""
        return self._validator.max_prompt_bytes

    def job(self, ask: Ask, prefix: str = "spec.") -> Job:
        """Returns the job of a request; see `Validator.job`, whose errors are counted here."""
        clock = self._clock
        if ask.waited_s:
            self._accounts.call_wait.observe(ask.waited_s)
        try:
            return self._validator.job(ask, clock.monotonic_s(), clock.wall_ns(), prefix)
        except DomainError as error:
            self.on_invalid(error)
            raise

    def on_invalid(self, error: DomainError) -> None:
        """Counts a request that is wrong."""
        self._accounts.on_invalid(error.reason)
