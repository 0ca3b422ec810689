"""Pieces of an answer, without a server."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2 as kserve

from services.common.tiers.answer import Budget, TierChunk
from services.common.tiers.errors import TierUnavailableError
from services.common.triton.answer import chunk_of


def test_an_answer_to_another_request_is_refused() -> None:
    """Nobody gets what an endpoint still had to say on the request before."""
    with pytest.raises(TierUnavailableError, match="another request"):
        chunk_of(kserve.ModelInferResponse(id="yours"), "mine", Budget(8))


def test_an_answer_without_an_id_is_taken() -> None:
    """A server that tells no id is understood."""
    answer = chunk_of(kserve.ModelInferResponse(), "mine", Budget(8))
    assert answer == TierChunk("", 0, False, "")
