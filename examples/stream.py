"""Print an answer as it comes: `python examples/stream.py [ROUTER]`, beside `tiercel up`."""

import asyncio
import sys

from tiercel import Answer, AsyncClient

ROUTER = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7410"


async def main() -> None:
    """Streams one answer; the last event describes it."""
    async with AsyncClient(ROUTER) as client:
        async for event in client.generate_stream("get:kqzvm?310243=", task="recall"):
            if isinstance(event, Answer):
                print(f"\n{event.output_token_count} tokens by {event.tier}")
            else:
                print(event.text, end="", flush=True)


asyncio.run(main())
