"""A client that is closed, or was made before a fork, says so at once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from tests.fakes.router import FakeRouter, serve
from tests.waiting import until, until_sync
from tiercel import AsyncClient, Client, ClientUnusableError, UnavailableError

PATIENCE_S = 5.0

FORKED = """
import os, sys
from tiercel import Client, ClientUnusableError
client = Client(sys.argv[1])
client.generate("ab", task="sort")
stream = client.generate_stream("ab", task="sort")
half_read = client.generate_stream("ab", task="sort")
next(half_read)
calls = {
    "generate": lambda: client.generate("ab", task="sort", deadline_s=0.5),
    "route": lambda: client.route(task="sort", prompt_token_count=1),
    "report": lambda: client.report_outcome(request_id="a", quality=1.0),
    "stream": lambda: list(client.generate_stream("ab", task="sort")),
    "begun": lambda: list(stream),
    "half read": lambda: list(half_read),
    "asynchronous": lambda: asyncio.run(client._client.generate("ab", task="sort")),
}
import asyncio
if os.fork() == 0:
    for name, call in calls.items():
        try:
            call()
        except ClientUnusableError as error:
            print(name, error.reason, flush=True)
    client.close()
    os._exit(0)
print("exit code", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
print("parent", len(list(half_read)), client.generate("ab", task="sort", deadline_s=5.0).text)
client.close()
"""

LET_GO = """
import asyncio, gc, os, sys
from tiercel import AsyncClient, Client, ClientUnusableError
client = Client(sys.argv[1])
client.generate("ab", task="sort")
if os.fork() == 0:
    for make in (AsyncClient, Client):
        try:
            make(sys.argv[1])
        except ClientUnusableError as error:
            print(error.reason, flush=True)
    del client
    gc.collect()
    print("let go", flush=True)
    sys.exit(0)
print("exit code", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
print(client.generate("cd", task="sort", deadline_s=5.0).text, flush=True)
client.close()
"""

CLOSED_BEFORE = """
import asyncio, os, sys
from tiercel import AsyncClient, Client

def ask():
    with Client(sys.argv[1]) as client:
        print(client.generate("ab", task="sort").text, flush=True)
    async def ask():
        async with AsyncClient(sys.argv[1]) as client:
            print((await client.generate("cd", task="sort")).text, flush=True)
    asyncio.run(ask())

ask()
if os.fork() == 0:
    ask()
    os._exit(0)
print("exit code", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
ask()
"""


async def _ended(work: Callable[[], object], close: Callable[[], object]) -> BaseException:
    """Returns what a blocking call under way ends with when another thread closes the client."""
    seen: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            seen.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    await asyncio.to_thread(close)
    await asyncio.to_thread(thread.join, PATIENCE_S)
    assert not thread.is_alive(), "the call blocks for ever"
    return seen[0]


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_closing_ends_a_blocking_call_with_an_error_of_ours(kind: str) -> None:
    """Whoever waits in another thread is woken, whatever the call."""
    router = FakeRouter(delay_s=60.0)
    server, address = await serve(router)
    client = Client(address)

    def work() -> object:
        if kind == "unary":
            return client.generate("ab", task="sort")
        return list(client.generate_stream("ab", task="sort"))

    def close() -> None:
        until_sync(lambda: router.specs, "the call has arrived")
        client.close()

    error = await _ended(work, close)
    await server.stop(0)
    assert isinstance(error, ClientUnusableError), repr(error)
    assert error.reason == "CLIENT_CLOSED"


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_closing_ends_an_awaited_call_with_an_error_of_ours(kind: str) -> None:
    """A task that awaits the answer is not cancelled: it gets an error."""
    router = FakeRouter(delay_s=60.0)
    server, address = await serve(router)
    client = AsyncClient(address)

    async def work() -> object:
        if kind == "unary":
            return await client.generate("ab", task="sort")
        return [event async for event in client.generate_stream("ab", task="sort")]

    task = asyncio.create_task(work())
    await until(lambda: bool(router.specs), "the call arrives")
    await client.close()
    with pytest.raises(ClientUnusableError, match="CLIENT_CLOSED"):
        await asyncio.wait_for(task, PATIENCE_S)
    await server.stop(0)


async def test_a_cancelled_task_stays_cancelled() -> None:
    """Cancelling one's own task is no error of the client."""
    router = FakeRouter(delay_s=60.0)
    server, address = await serve(router)
    async with AsyncClient(address) as client:
        task = asyncio.create_task(client.generate("ab", task="sort"))
        await until(lambda: bool(router.specs), "the call arrives")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await server.stop(0)


async def test_a_closed_client_refuses_calls() -> None:
    """Both clients say that they are closed; closing again does nothing."""
    client = AsyncClient("127.0.0.1:1")
    await client.close()
    await client.close()
    with pytest.raises(ClientUnusableError, match="CLIENT_CLOSED"):
        await client.generate("ab", task="sort")
    with pytest.raises(ClientUnusableError, match="CLIENT_CLOSED"):
        [event async for event in client.generate_stream("ab", task="sort")]
    blocking = await asyncio.to_thread(Client, "127.0.0.1:1")
    await asyncio.to_thread(blocking.close)
    await asyncio.to_thread(blocking.close)
    with pytest.raises(ClientUnusableError, match="CLIENT_CLOSED"):
        blocking.generate("ab", task="sort")
    with pytest.raises(ClientUnusableError, match="CLIENT_CLOSED"):
        list(blocking.generate_stream("ab", task="sort"))


async def _ran(script: str) -> list[str]:
    """Returns what a script says that gets the address of a router."""
    server, address = await serve(FakeRouter())
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    await server.stop(0)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


async def _survived(script: str) -> list[str]:
    """Returns what a script says whose child is not ended by gRPC's threads; see `forks`."""
    for _ in range(5):
        said = await _ran(script)
        if not any("exit code -" in line for line in said):
            break
    return said


async def test_a_client_of_before_a_fork_says_so_in_the_child() -> None:
    """Nothing hangs: each call in the child is an error at once. The parent's go on."""
    names = ("generate", "route", "report", "stream", "begun", "half read", "asynchronous")
    said = [*(f"{name} FORKED" for name in names), "exit code 0", "parent 2 AB"]
    assert await _survived(FORKED) == said


async def test_a_child_that_lets_go_of_a_client_harms_nobody() -> None:
    """Neither itself nor the parent; it can make none of its own, and is told why."""
    said = ["FORKED_WHILE_OPEN", "FORKED_WHILE_OPEN", "let go", "exit code 0", "CD"]
    assert await _survived(LET_GO) == said


async def test_clients_that_were_closed_before_a_fork_leave_the_child_free() -> None:
    """It makes its own, as does the parent afterwards."""
    assert await _ran(CLOSED_BEFORE) == ["AB", "CD", "AB", "CD", "exit code 0", "AB", "CD"]


def test_a_client_of_another_event_loop_says_so() -> None:
    """A client that outlives its loop does not hang in the next one."""
    client: list[AsyncClient] = []

    async def call() -> None:
        client.append(AsyncClient("127.0.0.1:1", timeout_s=0.2))
        with pytest.raises(UnavailableError):
            await client[0].generate("ab", task="sort")

    asyncio.run(call())
    with pytest.raises(ClientUnusableError, match="OTHER_LOOP"):
        asyncio.run(client[0].generate("ab", task="sort"))


def test_a_client_made_before_any_loop_belongs_to_the_first_that_calls() -> None:
    """One that a module makes as it is imported works; its calls do not hang."""
    client = AsyncClient("127.0.0.1:1", timeout_s=0.2)
    with pytest.raises(UnavailableError):
        asyncio.run(client.generate("ab", task="sort"))
    with pytest.raises(ClientUnusableError, match="OTHER_LOOP"):
        asyncio.run(client.generate("ab", task="sort"))


def test_a_client_made_in_a_loop_belongs_to_it_before_any_call() -> None:
    """In the next loop it would hang, and says so."""

    async def made() -> AsyncClient:
        return AsyncClient("127.0.0.1:1", timeout_s=0.2)

    client = asyncio.run(made())
    with pytest.raises(ClientUnusableError, match="OTHER_LOOP"):
        asyncio.run(client.generate("ab", task="sort"))


def test_a_client_that_was_never_used_can_be_closed() -> None:
    """It has no channels yet, and refuses calls from then on."""
    client = AsyncClient("127.0.0.1:1")
    asyncio.run(client.close())
    with pytest.raises(ClientUnusableError, match="CLIENT_CLOSED"):
        asyncio.run(client.generate("ab", task="sort"))


async def test_a_client_that_is_forgotten_takes_its_thread_along() -> None:
    """Without a close: programs that make one per request do not grow without end."""
    server, address = await serve(FakeRouter())
    names = [thread.name for thread in threading.enumerate()]

    def use() -> None:
        client = Client(address)
        client.generate("ab", task="sort")
        assert [thread.name for thread in threading.enumerate()] != names

    await asyncio.to_thread(use)
    await until(
        lambda: (
            sorted(t.name for t in threading.enumerate() if "tiercel" in t.name)
            == sorted(name for name in names if "tiercel" in name)
        ),
        "its thread has ended",
    )
    await server.stop(0)
