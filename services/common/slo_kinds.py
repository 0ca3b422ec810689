"""What a deadline is measured against, as messages have it."""

from __future__ import annotations

from collections.abc import Mapping

from router.types import SloKind
from tiercel.common.v1 import common_pb2

MESSAGE: Mapping[SloKind, common_pb2.SloKind.ValueType] = {
    SloKind.COMPLETE_ANSWER: common_pb2.SLO_KIND_COMPLETE_ANSWER,
    SloKind.FIRST_TOKEN: common_pb2.SLO_KIND_FIRST_TOKEN,
    SloKind.PER_TOKEN: common_pb2.SLO_KIND_PER_TOKEN,
}
"""The value of each kind in messages."""
OF_MESSAGE: Mapping[int, SloKind] = {value: kind for kind, value in MESSAGE.items()}
"""The kind of each value; unspecified is none of them."""
