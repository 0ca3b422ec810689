"""Python client of a Tiercel mesh.

    from tiercel import Client

    with Client("127.0.0.1:7410") as client:
        print(client.generate("sort: hello", task="sort").text)

``Client`` blocks, ``AsyncClient`` is for asyncio; both have the same calls. A call that fails
raises a ``TiercelError``. What is not listed in ``__all__`` may change without notice.
"""

from tiercel.aio import AsyncClient
from tiercel.client import Client
from tiercel.errors import (
    ClientUnusableError,
    DeadlineMissedError,
    ErrorDetails,
    InvalidRequestError,
    NotAllowedError,
    PreconditionError,
    RefusedError,
    RequestCancelledError,
    ServerError,
    TiercelError,
    UnavailableError,
    UnknownNameError,
)
from tiercel.options import GenerateOptions, Outcome, OutcomeStatus, RouteOptions
from tiercel.results import Answer, Chunk, Ticket

__all__ = [
    "Answer",
    "AsyncClient",
    "Chunk",
    "Client",
    "ClientUnusableError",
    "DeadlineMissedError",
    "ErrorDetails",
    "GenerateOptions",
    "InvalidRequestError",
    "NotAllowedError",
    "Outcome",
    "OutcomeStatus",
    "PreconditionError",
    "RefusedError",
    "RequestCancelledError",
    "RouteOptions",
    "ServerError",
    "Ticket",
    "TiercelError",
    "UnavailableError",
    "UnknownNameError",
]
