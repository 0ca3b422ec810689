"""Clients that come and go, and ask at a rate between them."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import time
from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np

from tests.faults.doors import Door, DoorError, KServeDoor, Missed, OpenAiDoor, OwnDoor

DEADLINE_S = 1.0
TASKS = ("piqa", "copa")
CLIENTS = 8
"""Clients at a time."""
OWN, KSERVE, OPENAI = "own", "kserve", "openai"
DOORS = (OWN, KSERVE, OWN, OPENAI)
"""At which door one client after the other asks."""
STREAMED_SHARE, LEFT_SHARE = 0.3, 0.03
"""Share of requests that stream, and of those whose client goes away before the answer."""
_LEFT_AFTER_S = 0.03
PATIENCE_S = 30.0
"""What has no end so long after it was sent has failed: routers end a request soon after its
deadline."""
_PROMPT = "word " * 96


@dataclasses.dataclass(frozen=True)
class Window:
    """What became of the requests of a stretch of time.

    Attributes:
        sent: Requests.
        on_time: Answered within their deadline.
        late: Answered later, or not at all by then.
        refused: Refused by admission.
        left: Given up by their client, on purpose.
        failed: All others.
        p50_ms: Median time of an answer, milliseconds.
        p99_ms: The same, 99th percentile.
    """

    sent: int
    on_time: int
    late: int
    refused: int
    left: int
    failed: int
    p50_ms: float
    p99_ms: float

    def with_more(self, other: Window) -> Window:
        """Returns the counts of both; the times stay."""
        return dataclasses.replace(
            self,
            sent=self.sent + other.sent,
            on_time=self.on_time + other.on_time,
            late=self.late + other.late,
            refused=self.refused + other.refused,
            left=self.left + other.left,
            failed=self.failed + other.failed,
        )


class Crowd:
    """Offers load from several clients of which one is replaced every now and then.

    Attributes:
        errors: Errors of requests that failed, by words.
        client_count: Clients so far.
        asked: Requests by door.
    """

    def __init__(
        self, routers: Sequence[str], openai_door: str = "", *, life_s: float, seed: int = 1
    ) -> None:
        """Opens nothing yet.

        Args:
            routers: Addresses of the routers.
            openai_door: Address of the OpenAI-shaped door; empty if there is none.
            life_s: After so long a client is replaced, about, in seconds.
            seed: Of all that is drawn.
        """
        self.errors: Counter[str] = Counter()
        self.client_count = 0
        self.asked: Counter[str] = Counter()
        self._routers = list(routers)
        self._openai_door = openai_door
        self._life_s = life_s
        self._random = random.Random(seed)
        doors = [door for door in DOORS if openai_door or door != OPENAI]
        self._doors = itertools.cycle(doors)
        self._clients: list[tuple[Door, float]] = []
        self._door_of: dict[Door, str] = {}
        self._busy: Counter[Door] = Counter()
        self._leaving: set[Door] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._counts: Counter[str] = Counter()
        self._answers_s = array("f")

    async def offer(self, rate_rps: float, duration_s: float) -> None:
        """Sends requests at random moments for so long, whatever becomes of them.

        It is one schedule from its beginning to its end. So nobody who looks meanwhile at what
        ended (`take`) makes a pause in the load.
        """
        due_s = time.monotonic()
        end_s = due_s + duration_s
        while (due_s := due_s + self._random.expovariate(rate_rps)) < end_s:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            await self._renew()
            client = self._random.choice(self._clients)[0]
            self._busy[client] += 1
            task = asyncio.create_task(self._one(client, due_s))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def ask(self, rate_rps: float, duration_s: float) -> Window:
        """Offers load; returns what became of all of it.

        What is slow ends last: without that nothing would seem to be late.
        """
        await self.offer(rate_rps, duration_s)
        await asyncio.gather(*self._tasks)
        return self.take()

    async def close(self) -> None:
        """Waits for what is under way and closes every client."""
        await asyncio.gather(*self._tasks)
        for client in (*self._leaving, *(each for each, _ in self._clients)):
            await client.close()
        self._clients.clear()
        self._leaving.clear()

    def take(self) -> Window:
        """Returns what ended since the last time."""
        counts, answers_s = self._counts, self._answers_s
        self._counts, self._answers_s = Counter(), array("f")
        percentiles = np.percentile(answers_s, (50, 99)) if answers_s else (0.0, 0.0)
        kinds = ("on_time", "late", "refused", "left", "failed")
        return Window(
            counts.total(),
            *(counts[kind] for kind in kinds),
            *(round(1e3 * float(each), 2) for each in percentiles),
        )

    async def _renew(self) -> None:
        now_s = time.monotonic()
        if self._clients and self._clients[0][1] < now_s:
            self._leaving.add(self._clients.pop(0)[0])
        while len(self._clients) < CLIENTS:
            client = self._client(next(self._doors))
            # All of the first ones were made at once.
            life_s = self._life_s * self._random.uniform(0.2, 1.8)
            self._clients.append((client, now_s + life_s))
            self._clients.sort(key=lambda each: each[1])
            self.client_count += 1
        for client in [each for each in self._leaving if not self._busy[each]]:
            self._leaving.discard(client)
            del self._busy[client], self._door_of[client]
            await client.close()

    def _client(self, door: str) -> Door:
        connections = self._random.choice((1, 4))
        client: Door
        if door == KSERVE:
            client = KServeDoor(self._routers)
        elif door == OPENAI:
            client = OpenAiDoor(self._openai_door)
        else:
            client = OwnDoor(self._routers, connections=connections)
        self._door_of[client] = door
        return client

    async def _one(self, client: Door, due_s: float) -> None:
        task, draw = self._random.choice(TASKS), self._random.random()
        leaves = draw < LEFT_SHARE
        self.asked[self._door_of[client]] += 1
        kind = Missed.FAILED.value
        try:
            async with asyncio.timeout(_LEFT_AFTER_S if leaves else PATIENCE_S):
                await client.ask(
                    _PROMPT, task=task, deadline_s=DEADLINE_S, stream=draw >= 1.0 - STREAMED_SHARE
                )
            taken_s = time.monotonic() - due_s
            self._answers_s.append(taken_s)
            kind = "on_time" if taken_s <= DEADLINE_S else "late"
        except TimeoutError:
            if leaves:
                kind = "left"
            else:
                self._note(client, f"no end within {PATIENCE_S:g} s")
        except DoorError as error:
            kind = error.kind.value
            if error.kind is Missed.FAILED:
                self._note(client, str(error))
        except Exception as error:  # an answer nobody can read, for one: it must not go uncounted
            self._note(client, repr(error))
        finally:
            self._counts[kind] += 1
            self._busy[client] -= 1

    def _note(self, client: Door, text: str) -> None:
        self.errors[f"{self._door_of[client]}: {text}"[:120]] += 1
