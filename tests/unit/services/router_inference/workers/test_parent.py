"""The parent of a router's workers, without forks."""

from __future__ import annotations

import asyncio
import errno
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.common.lifecycle import FAILURE_EXIT_CODE
from services.common.log import get_logger
from services.router_inference.workers.parent import Parent, _reserved
from tests.unit.services.router_inference.parts import make_rig
from tests.unit.services.router_inference.scenario import scenario


@pytest.mark.parametrize(("has_served", "tries"), [(True, 3), (False, 1)])
def test_a_worker_that_cannot_be_forked_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, has_served: bool, tries: int
) -> None:
    """Short of memory a router lacks a worker, and keeps the others; at its start it ends."""

    @scenario
    async def scene() -> None:
        app = make_rig().app
        parent = Parent(app, log=get_logger("test"), ready_file=None, source=cast("Any", None))
        parent._has_served = has_served
        tried: list[int] = []

        def fork(number: int) -> None:
            tried.append(number)
            if len(tried) == 3:
                parent._stop.set()
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

        monkeypatch.setattr(parent, "_fork", fork)
        await parent._keep(1)
        assert tried == [1] * tries
        assert parent._exit_code == (0 if has_served else FAILURE_EXIT_CODE)

    scene()


def test_a_port_whose_connections_were_just_closed_is_taken_again() -> None:
    """Who closes first keeps a connection for a minute: a restart must not wait for that."""
    with socket.socket() as before:
        before.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        before.bind(("127.0.0.1", 0))
        before.listen()
        address = before.getsockname()
        with socket.create_connection(address) as client:
            before.accept()[0].close()
            assert client.recv(1) == b""
    with _reserved(f"127.0.0.1:{address[1]}") as holder:
        assert holder.getsockname() == address


def test_workers_to_come_all_know_the_places_of_their_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Named before they are forked: each would give new tasks places of its own."""
    made: list[Parent] = []

    @scenario
    async def scene() -> None:
        log = get_logger("test")
        made.append(Parent(make_rig().app, log=log, ready_file=None, source=cast("Any", None)))

    scene()
    [parent] = made
    settings = parent._app.settings
    tasks = settings.mesh.tasks
    names = [task.name for task in tasks]
    assert list(parent._memory._place_of) == names
    monkeypatch.setattr(parent._app, "successor", lambda wanted: SimpleNamespace(settings=wanted))
    new = tasks[0].model_copy(update={"name": "new"})
    mesh = settings.mesh.model_copy(update={"tasks": (new, *reversed(tasks))})
    wanted = settings.model_copy(update={"mesh": mesh})
    assert asyncio.run(parent._take(wanted, frozenset({"mesh.tasks"}))) == {"mesh.tasks"}
    assert list(parent._memory._place_of) == [*names, "new"]
