"""Names of values: what a later version has added is told too."""

from __future__ import annotations

from services.common.enum_names import name_of
from tiercel.common.v1 import common_pb2


def test_a_name_is_without_that_of_its_enum() -> None:
    """The value that stands for none has a name as well."""
    kind = common_pb2.StepDownReason
    assert name_of(kind, common_pb2.STEP_DOWN_REASON_RESCUE) == "rescue"
    assert name_of(kind, common_pb2.STEP_DOWN_REASON_UNSPECIFIED) == "unspecified"


def test_a_value_of_a_later_version_is_its_number() -> None:
    """While a mesh is renewed, a new router answers to an old door."""
    assert name_of(common_pb2.ConversationStay, 99) == "99"
    assert name_of(common_pb2.EndpointHealth, -1) == "-1"
