"""Ask a mesh one question: `python examples/ask.py [ROUTER]`, beside `tiercel up`."""

import sys

from tiercel import Client, RefusedError

ROUTER = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7410"

with Client(ROUTER) as client:
    try:
        answer = client.generate("sort:hgcafde=", task="sort", deadline_s=0.5)
    except RefusedError as error:
        # Not even the smallest tier could have answered in time: tell your user, or ask later.
        print(f"refused ({error.reason}), try again in {error.retry_delay_s} s")
    else:
        print(f"{answer.text!r} by {answer.tier}, on time: {answer.on_time}")
