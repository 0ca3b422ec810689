"""Let the mesh choose and carry the bytes yourself: `python examples/route_and_report.py [ROUTER]`.

The router answers with a tier, the Triton server to call and a ticket. Until the ticket comes back,
or its lease ends, the request counts as load on that server.
"""

import sys
import time

from tiercel import Client

ROUTER = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7410"


def call_the_model(address: str, model: str) -> int:
    """Stands for your own call of Triton; returns the number of tokens in the answer."""
    print(f"calling {model} at {address}")
    return 8


with Client(ROUTER) as client:
    began_s = time.monotonic()
    ticket = client.route(task="sort", prompt_token_count=14, deadline_s=0.5)
    token_count = call_the_model(ticket.address, ticket.model_name)
    took_s = time.monotonic() - began_s
    client.report_outcome(
        ticket=ticket.ticket,
        status="on_time" if took_s <= 0.5 else "late",
        latency_s=took_s,
        output_token_count=token_count,
    )
    print(f"{ticket.tier} was chosen by {ticket.policy}")
