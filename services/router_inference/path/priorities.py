"""What priority classes mean for the requests of one process; see `router.priority`."""

from __future__ import annotations

from router import priority
from router.priority import Classes
from router.types import Priority
from services.router_inference.job import Job, Standing

_ALONE = Standing()


class Priorities:
    """What one process learned of the classes it was asked for."""

    def __init__(self) -> None:
        """Starts as if all requests had been normal, and none refused."""
        self._learned = Classes()
        self._mean_place_before = self._learned.mean_place

    def arrive(self, job: Job) -> Standing:
        """Counts a request that is to be decided for; returns what its class means for it."""
        learned, place = self._learned, job.request.priority
        self._mean_place_before = learned.mean_place
        if priority.is_alone(learned, place):
            # So it is in most meshes, for every request: what follows would come to the same.
            return (
                _ALONE
                if place is job.asked_priority is Priority.NORMAL
                else Standing(place, job.asked_priority)
            )
        priority.arrive(learned, place)
        return Standing(
            place,
            job.asked_priority,
            priority.log_price(learned, place),
            priority.log_caution(learned, place),
            priority.is_owed(learned, place),
        )

    def take_back(self) -> None:
        """Forgets the request that was counted last."""
        self._learned.mean_place = self._mean_place_before

    def learn(self, standing: Standing, *, refused: bool) -> None:
        """Learns what admission made of a request that it was asked about."""
        priority.learn(self._learned, standing.priority, refused)

    def price_factor(self, place: Priority) -> float:
        """Returns the factor on the price of device time of a request of a class now."""
        return priority.factor(priority.log_price(self._learned, place))
