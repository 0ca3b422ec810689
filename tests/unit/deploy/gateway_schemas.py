"""What InferencePools and HTTPRoutes may hold, of the fields that a gateway for one mesh needs.

Of InferencePool `inference.networking.k8s.io/v1` and HTTPRoute `gateway.networking.k8s.io/v1`
(standard channel): names, types, ranges and required fields, from their definitions. A field that
is not here is refused, though the API may know it.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 253}
GROUP: Schema = {"type": "string", "pattern": r"^$|^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}
KIND: Schema = {"type": "string", "pattern": r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$"}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65_535}
DURATION: Schema = {"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
LABEL: Schema = {"type": "string", "pattern": r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"}


def _object(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def _list(of: Schema, least: int, most: int) -> Schema:
    return {"type": "array", "items": of, "minItems": least, "maxItems": most}


def _reference(**more: Schema) -> Schema:
    own = {"group": GROUP, "kind": KIND, "namespace": NAME, "name": NAME, "port": PORT}
    return _object(("name",), **own, **more)


PORT_NUMBER = _object(("number",), number=PORT)

INFERENCE_POOL = _object(
    ("selector", "targetPorts", "endpointPickerRef"),
    selector=_object(
        ("matchLabels",),
        matchLabels={"type": "object", "maxProperties": 64, "additionalProperties": LABEL},
    ),
    targetPorts=_list(PORT_NUMBER, 1, 8),
    endpointPickerRef=_object(
        ("name",),
        group=GROUP,
        kind=KIND,
        name=NAME,
        port=PORT_NUMBER,
        failureMode={"enum": ["FailOpen", "FailClose"]},
    ),
)
"""Its `spec`."""

HTTP_ROUTE = _object(
    (),
    parentRefs=_list(_reference(sectionName=NAME), 0, 32),
    hostnames=_list(NAME, 0, 16),
    rules=_list(
        _object(
            (),
            name=NAME,
            matches=_list(
                _object(
                    (),
                    path=_object(
                        (),
                        type={"enum": ["Exact", "PathPrefix", "RegularExpression"]},
                        value={"type": "string", "maxLength": 1_024},
                    ),
                    method={"enum": ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"]},
                ),
                0,
                64,
            ),
            timeouts=_object((), request=DURATION, backendRequest=DURATION),
            backendRefs=_list(
                _reference(weight={"type": "integer", "minimum": 0, "maximum": 1_000_000}), 0, 16
            ),
        ),
        1,
        16,
    ),
)
"""Its `spec`. A backend of another kind than Service needs no port."""
