"""Tickets: what is signed comes back, what is not is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router_inference.job import Outcome
from services.router_inference.path.leases import Report
from services.router_inference.path.tickets import InvalidTicketError, Ticket, TicketSigner

KEY = b"k" * 32
TICKET = Ticket("r", 1, 2, "c", 3.5, 30.0, 0.5, 0.0, 0.8, 8, "task", "small", "e0", "id-ü", "shop")
DONE = Report(Outcome.ON_TIME, None, 8, None)


def test_a_ticket_comes_back_as_it_was_signed() -> None:
    """Everything a closing worker needs is in it."""
    assert TicketSigner(KEY).read(TicketSigner(KEY).sign(TICKET)) == TICKET


def test_another_key_does_not_read_it() -> None:
    """A ticket of another mesh is refused."""
    with pytest.raises(InvalidTicketError):
        TicketSigner(b"x" * 32).read(TicketSigner(KEY).sign(TICKET))


@given(st.data())
def test_a_changed_ticket_is_refused(data: st.DataObject) -> None:
    """No byte can be changed, none taken away or added."""
    signed = bytearray(TicketSigner(KEY).sign(TICKET))
    place = data.draw(st.integers(0, len(signed) - 1))
    signed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidTicketError):
        TicketSigner(KEY).read(bytes(signed))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    """Garbage never raises anything else."""
    with pytest.raises(InvalidTicketError):
        TicketSigner(KEY).read(data)


def test_a_short_key_is_refused() -> None:
    """A key anybody can guess is none."""
    with pytest.raises(ValueError, match="at least 16 bytes"):
        TicketSigner(b"short")
