"""Pieces of an answer, without a server."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2 as kserve

from services.common.triton.answer import Budget, TierChunk
from services.common.triton.errors import TierUnavailableError


def test_an_answer_to_another_request_is_refused() -> None:
    """Nobody gets what an endpoint still had to say on the request before."""
    with pytest.raises(TierUnavailableError, match="another request"):
        Budget("mine", 8).chunk(kserve.ModelInferResponse(id="yours"))


def test_an_answer_without_an_id_is_taken() -> None:
    """A server that tells no id is understood."""
    assert Budget("mine", 8).chunk(kserve.ModelInferResponse()) == TierChunk("", 0, False, "")
