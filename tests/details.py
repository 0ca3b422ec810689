"""What a failed call says beside its status, for assertions."""

from __future__ import annotations

from typing import Any

import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status


def details_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """Returns the detail messages by type name, e.g. `ErrorInfo`."""
    found: dict[str, Any] = {}
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        name = detail.TypeName().rsplit(".", 1)[1]
        found[name] = getattr(error_details_pb2, name)()
        detail.Unpack(found[name])
    return found
