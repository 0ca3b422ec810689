"""Promoting means that routers use the policy: they are asked, and what they refuse is undone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.common.clock import Clock
from services.common.errors import FailedPreconditionError, cut
from services.common.log import Logger
from services.trainer.mesh_view import MeshView, RouterSeen
from services.trainer.model import RolloutState
from services.trainer.registry import ActivationNote, ActivePolicy, PolicyRegistry

_ASK_S = 0.1
_LISTED = 8


class RoutersRefusedError(FailedPreconditionError):
    """Routers refused the policy; what was active before is active again."""


class Promotion(NamedTuple):
    """What is active after a policy was promoted, and which routers use it.

    Attributes:
        active: what is active; None if nothing was ever activated.
        using: ids of the routers that have taken it in.
        waiting: ids of the routers that had not answered in time.
        rollout: that has begun or goes on; None if the policy is active at once.
        verdict: what the gate found, in words; empty if it was not asked.
    """

    active: ActivePolicy | None
    using: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    rollout: RolloutState | None = None
    verdict: str = ""

    @property
    def activation(self) -> int:
        """Number of the activation, 0 if there never was one."""
        return self.active.activation if self.active is not None else 0


class Promoter:
    """Activates policies and waits for the routers' word."""

    def __init__(
        self,
        *,
        registry: PolicyRegistry,
        mesh: MeshView,
        clock: Clock,
        log: Logger,
        wait_s: float = 3.0,
    ) -> None:
        """Takes the registry and the mesh; waits at most `wait_s` seconds for routers."""
        self._registry = registry
        self._mesh = mesh
        self._clock = clock
        self._log = log
        self._wait_s = wait_s

    async def promote(
        self,
        policy: str,
        version: str = "",
        expected_activation: int | None = None,
        *,
        force_reason: str = "",
        note: ActivationNote | None = None,
    ) -> Promotion:
        """Activates a policy; see `PolicyRegistry.promote`.

        Raises:
            RoutersRefusedError: A router refused it; it is rejected and the former one is back.
        """
        return await self.confirm(
            await self._registry.promote(
                policy, version, expected_activation, force_reason=force_reason, note=note
            )
        )

    async def rollback(self, reason: str) -> Promotion:
        """Activates what served before the present policy; see `PolicyRegistry.rollback`.

        Raises:
            RoutersRefusedError: A router refused it.
        """
        return await self.confirm(await self._registry.rollback(reason))

    async def confirm(self, active: ActivePolicy) -> Promotion:
        """Waits for the routers' word on what has become active.

        Raises:
            RoutersRefusedError: A router refused it; it is rejected and the former one is back.
        """
        routers = await self._answers(active.activation)
        answered = [each for each in routers if each.activation == active.activation]
        refused = [each for each in answered if each.refusal]
        if refused:
            text = _told(refused)
            await self._registry.withdraw(active, cut(f"refused by {text}", 800))
            raise RoutersRefusedError(
                f"{len(refused)} of {len(routers)} routers refused it: {text}; what was active "
                "before is active again",
                reason="ROUTERS_REFUSED",
                metadata={"routers": text, "refused_count": str(len(refused))},
            )
        done = {each.router_id for each in answered}
        waiting = tuple(each.router_id for each in routers if each.router_id not in done)
        if waiting:
            self._log.warning("routers_waiting", count=len(waiting), first=waiting[0])
        return Promotion(active, tuple(sorted(done)), waiting)

    async def _answers(self, activation: int) -> Sequence[RouterSeen]:
        """Returns the routers once all have taken in the activation, or when time is up."""
        end_s = self._clock.monotonic_s() + self._wait_s
        routers: Sequence[RouterSeen] = ()
        async for routers in self._mesh.watch(_ASK_S):
            if all(each.activation == activation for each in routers):
                break
            if self._clock.monotonic_s() >= end_s:
                break
        return routers


def _told(refused: Sequence[RouterSeen]) -> str:
    """Returns who refused and why, the first few of them."""
    shown = ", ".join(f"{each.router_id[:64]} ({each.refusal})" for each in refused[:_LISTED])
    more = len(refused) - _LISTED
    return f"{shown} and {more} more" if more > 0 else shown
