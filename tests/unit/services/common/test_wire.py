"""Bytes that are put together by hand are those that protobuf writes."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2 as kserve

from services.common import wire


@pytest.mark.parametrize("size", [0, 1, 127, 128, 2_047, 2_048, 16_383, 16_384, 300_000])
def test_a_field_is_written_as_protobuf_does(size: int) -> None:
    """Whatever the length, which takes a byte for every seven bits."""
    data = b"x" * size
    message = kserve.ModelInferResponse(raw_output_contents=[data])
    assert wire.field(wire.tag(6), data) == message.SerializeToString()


def test_messages_that_follow_each_other_are_one() -> None:
    """Lists go on, a map takes the later value, and messages within are put together likewise."""
    first, second = kserve.ModelInferResponse(id="1"), kserve.ModelInferResponse(model_name="m")
    for said, response in enumerate((first, second)):
        response.parameters["both"].int64_param = said
        response.raw_output_contents.append(bytes((said,)))
    parts = [wire.field(wire.tag(2), each.SerializeToString()) for each in (first, second)]
    found = kserve.ModelStreamInferResponse.FromString(b"".join(parts)).infer_response
    assert (found.id, found.model_name) == ("1", "m")
    assert found.parameters["both"].int64_param == 1
    assert list(found.raw_output_contents) == [b"\0", b"\1"]
