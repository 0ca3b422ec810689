"""What a router remembers of conversations, and what it makes of it on the path of a request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from router.fleet import Fleet, build_fleet
from router.profile import LatencyProfile
from router.seat import MARGIN, Stay
from services.common.access.guard import CALLER, Caller
from services.common.errors import InvalidArgumentError
from services.router_inference.path.conversations import Conversations, table_words
from services.router_inference.workers.memory import Memory
from services.router_inference.workers.siblings import NoSiblings, SharedSiblings
from tests.unit.router import fleets
from tests.unit.services.router_inference.parts import (
    PROFILE,
    Behaviour,
    Rig,
    choice_of,
    make_rig,
)
from tests.unit.services.router_inference.scenario import scenario

SECRET = bytes(16)
ROOM = 1_000


def fleet(room: int = ROOM) -> Fleet:
    """Returns two devices with every tier, each with room for prefixes."""
    tiers = {t: replace(p, prefix_cache_tokens=room) for t, p in fleets.profile().tiers.items()}
    profile = LatencyProfile("test", "assumed", tiers)
    return build_fleet(fleets.catalog(), fleets.fleet(2).endpoints, {"": profile})


class Kept:
    """A table and the fleet it is asked about."""

    def __init__(self, count: int = 64, words: Any = None, found: Fleet | None = None) -> None:
        """Makes it; `words` is memory that is shared."""
        self.table = Conversations(
            words=np.zeros(table_words(count), np.int64) if words is None else words,
            count=count,
            memory_s=60.0,
            margin=MARGIN,
            secret=SECRET,
        )
        self.fleet = found or fleet()
        self.names = tuple(self.fleet.row)

    def find(self, key: bytes, prompt: float = 400.0, now_s: float = 1.0) -> Any:
        """Returns what is known."""
        return self.table.find(key, prompt, now_s, self.fleet, self.names)


def test_a_conversation_is_found_where_it_was_served_last() -> None:
    """With what it left there, and only under its own id."""
    kept = Kept()
    key = kept.table.key("", "mine")
    assert kept.find(key) is None
    kept.table.on_answer(key, ("large", "e1"), 108.0, 1.0)
    kept.table.on_answer(key, ("medium", "e1"), 230.0, 2.0)
    known = kept.find(key, now_s=3.0)
    assert known.candidate == ("medium", "e1")
    assert known.seat == (kept.fleet.row["medium", "e1"], 224.0, MARGIN)
    assert kept.find(kept.table.key("", "other")) is None


def test_what_was_served_there_since_fills_the_cache() -> None:
    """Also of requests that belong to no conversation; other candidates' do not matter."""
    kept = Kept()
    key = kept.table.key("", "mine")
    kept.table.on_answer(key, ("large", "e0"), 200.0, 1.0)
    kept.table.on_answer(b"", ("large", "e1"), 5_000.0, 1.0)
    kept.table.on_answer(b"", ("large", "e0"), 800.0, 1.0)
    assert kept.find(key).seat.cached_tokens == 192.0
    kept.table.on_answer(b"", ("large", "e0"), 1.0, 1.0)
    assert kept.find(key).seat.cached_tokens == 0.0
    assert kept.find(key).candidate == ("large", "e0")


def test_a_conversation_is_forgotten_after_its_time() -> None:
    """It is new then."""
    kept = Kept()
    key = kept.table.key("", "mine")
    kept.table.on_answer(key, ("large", "e0"), 200.0, 1.0)
    assert kept.find(key, now_s=61.0) is not None
    assert kept.find(key, now_s=61.1) is None


def test_a_seat_that_left_the_fleet_is_known_as_gone() -> None:
    """The conversation is not new; it has to move."""
    kept = Kept()
    key = kept.table.key("", "mine")
    kept.table.on_answer(key, ("large", "e9"), 200.0, 1.0)
    known = kept.find(key)
    assert known.candidate is None
    assert known.seat.row < 0


def test_the_table_is_bounded_and_the_longest_unused_go() -> None:
    """Of 64 places in sets of eight, those are filled anew whose conversation is oldest."""
    kept = Kept(count=64)
    keys = [kept.table.key("", str(i)) for i in range(2_000)]
    for i, key in enumerate(keys):
        kept.table.on_answer(key, ("large", "e0"), 100.0, 0.001 * i)
    found = [i for i, key in enumerate(keys) if kept.find(key, now_s=2.0) is not None]
    assert len(found) == 64
    assert min(found) > 2_000 - 64 * 4


def test_ids_are_kept_as_hashes_that_only_the_router_can_make() -> None:
    """The same id of two clients, and of two routers, are different; the text is nowhere."""
    one, two = Kept(), Kept()
    two.table._secret = bytes(range(16))
    names = {one.table.key("a", "x"), one.table.key("b", "x"), two.table.key("a", "x")}
    assert len(names) == 3
    assert all(len(name) == 16 for name in names)


def test_workers_share_what_they_remember() -> None:
    """A conversation that comes to another worker of the port stays where it was."""
    memory = Memory(worker_count=2, counts_width=1, conversation_words=table_words(64))
    tables = []
    for number in (1, 2):
        words, secret = SharedSiblings(memory, number).conversations(table_words(64))
        tables.append(Kept(words=words))
        tables[-1].table._secret = secret
    key = tables[0].table.key("", "mine")
    assert tables[1].table.key("", "mine") == key
    tables[0].table.on_answer(key, ("large", "e1"), 200.0, 1.0)
    assert tables[1].find(key).candidate == ("large", "e1")
    alone, _ = NoSiblings().conversations(table_words(64))
    assert Kept(words=alone).find(key) is None


def test_what_another_worker_is_writing_is_not_read() -> None:
    """A place with an odd version is half written; one that stays so is written over."""
    kept = Kept(count=8)
    key = kept.table.key("", "mine")
    kept.table.on_answer(key, ("large", "e0"), 200.0, 1.0)
    at = kept.table._place(key)
    kept.table._whole[at] += 1
    assert kept.find(key) is None
    kept.table.on_answer(key, ("large", "e0"), 200.0, 1.0)
    assert kept.find(key) is not None


def cached_profile() -> LatencyProfile:
    """Returns the test profile with prompts that take time, and room for prefixes."""
    tiers = {
        name: replace(tier, per_prompt_token_s=0.0005, prefix_cache_tokens=10_000)
        for name, tier in PROFILE.tiers.items()
    }
    return replace(PROFILE, tiers=tiers)


async def turn(rig: Rig, **fields: Any) -> Any:
    """Runs a request of a conversation; returns its job."""
    job = rig.job(**{"conversation_id": "talk", **fields})
    await rig.answer(job)
    return job


@scenario
async def test_a_conversation_stays_on_its_endpoint() -> None:
    """A second request goes where the first went, though another endpoint would be next."""
    rig = make_rig(endpoint_count=3, policy="static-large")
    first = await turn(rig)
    assert choice_of(first).stay is Stay.NEW
    others = [await turn(rig, conversation_id=f"other {i}") for i in range(2)]
    rig.tier(int(first.endpoint[1:])).default = Behaviour(step_s=0.05)
    assert {job.endpoint for job in (first, *others)} >= {first.endpoint}
    second = await turn(rig)
    assert (second.tier, second.endpoint) == (first.tier, first.endpoint)
    assert choice_of(second).stay is Stay.KEPT
    assert rig.core.accounts.conversation_counts == {"new": 3, "kept": 1}
    rig.assert_settled()


@scenario
async def test_what_is_cached_is_neither_predicted_nor_counted() -> None:
    """The prediction is shorter by it, and so is the prompt that waits in the ledger."""
    rig = make_rig(profile=cached_profile(), mesh={"bytes_per_token": 1.0})
    first = await turn(rig, prompt="x" * 200)
    assert choice_of(first).predicted_s == pytest.approx(0.1 + 8 * 0.01)
    second = rig.job(conversation_id="talk", prompt="x" * 300)
    choice = rig.core.dispatcher._decider.decide(second)
    # 200 tokens and an answer of two are twelve blocks of 16.
    assert second.cached_at(("large", "e0")) == 192.0
    assert second.cached_at(("small", "e0")) == 0.0
    assert second.new_tokens_at(("large", "e0")) == 108.0
    assert choice.predicted_s == pytest.approx(108 * 0.0005 + second.request.output_tokens * 0.01)
    await rig.answer(third := rig.job(conversation_id="talk", prompt="x" * 300))
    records = await rig.records()
    outcome = [entry.outcome for entry in records if entry.HasField("outcome")][-1]
    assert outcome.request_id == third.request_id
    assert outcome.cached_prompt_token_count == 192


@scenario
async def test_the_mean_prompt_is_what_was_not_cached() -> None:
    """Policies plan for what devices have to compute."""
    rig = make_rig(profile=cached_profile(), mesh={"bytes_per_token": 1.0})
    await turn(rig, prompt="x" * 200)
    assert rig.core.view.traffic.mean_prompt_tokens == 200.0
    for _ in range(400):
        await turn(rig, prompt="x" * 200)
    # 199 tokens at most are cached, in whole blocks: 192.
    assert rig.core.view.traffic.mean_prompt_tokens == pytest.approx(8.0, abs=1.0)


@scenario
async def test_records_say_what_became_of_a_conversation() -> None:
    """New, then kept; nothing of one that named none. No record holds the id."""
    rig = make_rig()
    for _ in range(2):
        await turn(rig, conversation_id="a secret name")
    await turn(rig, conversation_id="")
    records = await rig.records()
    stays = [entry.decision.conversation_stay for entry in records if entry.HasField("decision")]
    assert stays == [1, 2, 0]
    assert not any(b"secret" in entry.SerializeToString() for entry in records)


@scenario
async def test_a_failed_seat_is_left_and_the_new_one_is_kept() -> None:
    """Where a conversation was served, not where it was sent, is its seat."""
    rig = make_rig(endpoint_count=2, eject_after_failures=1)
    first = await turn(rig)
    rig.core.view.fleet.latest.arrays.availability_C[:] = 1.0
    other = "e1" if first.endpoint == "e0" else "e0"
    second = await turn(rig, endpoints=frozenset({other}))
    assert choice_of(second).stay is Stay.CLOSED
    assert second.endpoint == other
    third = await turn(rig)
    assert (choice_of(third).stay, third.endpoint) == (Stay.KEPT, other)


@scenario
async def test_conversations_can_be_switched_off() -> None:
    """Ids are checked then, and mean nothing."""
    rig = make_rig(conversation_count=0)
    job = await turn(rig)
    await turn(rig)
    assert choice_of(job).stay is Stay.NONE
    assert rig.core.accounts.conversation_counts == {}
    with pytest.raises(InvalidArgumentError, match="conversation_id"):
        rig.job(conversation_id="x" * 129)


@scenario
async def test_two_authenticated_callers_have_two_conversations_of_one_id() -> None:
    """Nobody can move another's by knowing its id."""
    rig = make_rig()
    found = []
    for name in ("shop", "shop", "desk"):
        token = CALLER.set(Caller(name, frozenset()))
        found.append(choice_of(await turn(rig)).stay)
        CALLER.reset(token)
    assert found == [Stay.NEW, Stay.KEPT, Stay.NEW]


@scenario
async def test_an_id_that_is_too_long_names_field_and_limit() -> None:
    """At most 128 characters."""
    rig = make_rig()
    assert rig.job(conversation_id="ä" * 128).conversation
    with pytest.raises(InvalidArgumentError, match=r"spec\.conversation_id.*128"):
        rig.job(conversation_id="x" * 129)
