"""Wrong arguments are named before anything is sent."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tiercel import Client, UnavailableError
from tiercel.arguments import check, check_addresses
from tiercel.convert import generation_spec

NOWHERE = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"deadline_s": "0.8"}, "deadline_s: must be a number, got str '0.8'"),
        ({"deadline_s": True}, "deadline_s: must be a number, got bool True"),
        ({"max_output_tokens": 1.5}, "max_output_tokens: must be a whole number, got float 1.5"),
        ({"prompt": [{"role": "user", "content": "Hi"}]}, "prompt: must be a text, got list "),
        ({"prompt": b"ab"}, "prompt: must be a text, got bytes b'ab'"),
        ({"task": None}, "task: must be a text, got NoneType None"),
        ({"quality_floor": "high"}, "quality_floor: must be a number"),
        ({"seed": "1"}, "seed: must be a whole number"),
        ({"tier": 3}, "tier: must be a text"),
    ],
)
def test_a_wrong_type_is_an_error_that_names_the_argument(
    arguments: dict[str, Any], message: str
) -> None:
    """Whatever else is right, and though no router is there."""
    prompt = arguments.pop("prompt", "ab")
    with Client(NOWHERE) as client, pytest.raises(TypeError) as found:
        client.generate(prompt, **{"task": "sort", **arguments})
    assert str(found.value).startswith(message)


def test_messages_of_a_chat_get_a_hint() -> None:
    """The router takes one text."""
    with pytest.raises(TypeError, match="write the messages of a chat as one text"):
        check(prompt=[{"role": "user", "content": "Hi"}])


def test_the_other_calls_check_theirs() -> None:
    """Route and report, streams too."""
    with Client(NOWHERE) as client:
        with pytest.raises(TypeError, match="prompt_token_count: must be a whole number"):
            client.route(task="sort", prompt_token_count="3")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"ticket: must be the bytes of Ticket\.ticket"):
            client.report_outcome(ticket="t", status="on_time")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="deadline_s: must be a number"):
            list(client.generate_stream("ab", task="sort", deadline_s="1"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "ab\ud800"}, "prompt: is no valid text: half of a character ('\\ud800') at 2"),
        ({"task": "\udfff"}, "task: is no valid text"),
        ({"request_id": "é\udfff"}, "request_id: is no valid text"),
        ({"deadline_s": 1e30}, "deadline_s: must be at most 1000000000, got float 1e+30"),
        ({"deadline_s": 10**30}, "deadline_s: must be at most 1000000000, got int 1000"),
        ({"deadline_s": 10**400}, "deadline_s: must be at most 1000000000, got int 1000"),
        ({"deadline_s": Fraction(10**400)}, "deadline_s: must be at most 1000000000, got Fraction"),
        ({"quality_floor": 10**400}, "quality_floor: must be at most 1.79769313486e+308, got int"),
        ({"seed": 10**5000}, "seed: must be at most 9.22337203685e+18, got int of too many digits"),
        ({"seed": 2**80}, "seed: must be at most 9.22337203685e+18, got int 1208"),
        ({"max_output_tokens": -(2**40)}, "max_output_tokens: must be at most 2147483647, got int"),
    ],
)
def test_what_no_message_can_carry_is_an_error_that_names_the_argument(
    arguments: dict[str, Any], message: str
) -> None:
    """A ValueError, in single answers and in streams."""
    prompt = arguments.pop("prompt", "ab")
    with Client(NOWHERE) as client:
        for ask in (client.generate, lambda *a, **b: list(client.generate_stream(*a, **b))):
            with pytest.raises(ValueError, match=r"must be at most|no valid text") as found:
                ask(prompt, **{"task": "sort", **arguments})
            assert str(found.value).startswith(message)


@pytest.mark.parametrize("number", [np.float32, np.float64, Fraction, int])
def test_a_deadline_may_be_a_number_of_any_library(number: Any) -> None:
    """It becomes the message's own, and the call's."""
    with Client(NOWHERE) as client, pytest.raises(UnavailableError):
        client.generate("ab", task="sort", deadline_s=number(2))
    spec = generation_spec("ab", task="sort", deadline_s=number(2))
    assert spec.deadline.ToNanoseconds() == 2_000_000_000


def test_numbers_of_other_libraries_are_numbers() -> None:
    """Whatever registers as one; infinity is none that a message can carry."""
    check(deadline_s=np.float32(0.5), max_output_tokens=np.int64(3), temperature=1)
    with pytest.raises(ValueError, match="deadline_s: must be finite"):
        check(deadline_s=float("inf"))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:7410", "expected host:port, got 'http://127.0.0.1:7410'; try '127.0.0"),
        ("https://router.example:7410/v1", "try 'router.example:7410'"),
        ("127.0.0.1", "expected host:port, got '127.0.0.1'"),
        ("", "expected host:port, got ''"),
        ("127.0.0.1:99999", "the port must be a number from 1 to 65535, got '127.0.0.1:99999'"),
        ("dns:///router.example:0", "the port must be a number from 1 to 65535"),
        ("\ud800:1", "no valid text"),
        ("router\0.example:1", "expected host:port, got 'router\\x00.example:1'"),
        ("unix:/run/r\0.sock", "expected host:port"),
    ],
)
def test_an_address_that_is_none_is_named(address: str, message: str) -> None:
    """With what it should have been, where that can be told."""
    with pytest.raises(ValueError, match="addresses: ") as found:
        Client(address)
    assert message in str(found.value)


@pytest.mark.parametrize("connections", [1_001, 10**12, 10**400])
def test_connections_are_bounded(connections: int) -> None:
    """Each is a channel with buffers of its own: a slip must not fill the memory."""
    with pytest.raises(ValueError, match="connections: must be at most 1000, got int 10"):
        Client(NOWHERE, connections=connections)


def test_what_grpc_resolves_is_an_address() -> None:
    """Names with a scheme, IPv6, host and port."""
    good = ["dns:///router-inference:7410", "unix:/run/r.sock", "[::1]:7410", "router_1.x:7410"]
    assert check_addresses(good) == good
    with pytest.raises(TypeError, match="addresses: must be texts, got int 7410"):
        check_addresses([7410])
