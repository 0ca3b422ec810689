"""The models of the KServe door: the router itself, and each tier; versions as Triton has them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from services.common.errors import InvalidArgumentError, NotFoundError
from services.router_inference.view.view import View

ROUTER = "tiercel"
"""Model for which the router chooses the tier; a tier of this name cannot be asked for alone."""
ROUTER_UNARY = "tiercel_unary"
"""The same, not decoupled: for tools that call ModelInfer only where the configuration says so."""
VERSION = "1"
_NUMBER = re.compile(r"\s*([+-]?\d+)", re.ASCII)
_LARGEST = 2**63 - 1


class EarlyError(Exception):
    """Marks an error that Triton finds before a model sees the request.

    It tells those in a stream's own messages, whatever else is asked for, and without the model.
    """


class TensorError(InvalidArgumentError, EarlyError):
    """A request is not of the form that its model has.

    Args:
        field: What is wrong: an input, an output, a parameter.
        text: What Triton would say.
    """

    def __init__(self, field: str, text: str) -> None:
        super().__init__(field, text)
        self.message = text
        self.args = (text,)


class UnknownModelError(NotFoundError, EarlyError):
    """There is no such model, or no such version of it."""

    def __init__(self, name: str, what: str, known: Sequence[str]) -> None:
        super().__init__("model", name, known)
        self.message = f"Request for unknown model: {what} is not found" + (
            f"; known: {self.metadata['known']}" if known else ""
        )
        self.args = (self.message,)


@dataclass(frozen=True, slots=True)
class Model:
    """One model.

    Attributes:
        name: its name.
        tier: the only tier it uses; empty = the router chooses.
        is_decoupled: whether it says that it may answer in several pieces.
    """

    name: str
    tier: str
    is_decoupled: bool = True


class Models:
    """The models of a router, and which of them can answer now."""

    def __init__(self, tiers: Sequence[str], view: View) -> None:
        """Takes the names of the tiers, and where their endpoints are seen."""
        self._view = view
        pinned = [Model(tier, tier) for tier in tiers]
        own = (Model(ROUTER, ""), Model(ROUTER_UNARY, "", is_decoupled=False))
        self._models = {model.name: model for model in (*pinned, *own)}
        self.names = tuple(sorted(self._models))

    def __iter__(self) -> Iterator[Model]:
        """Yields them in order of name."""
        return (self._models[name] for name in self.names)

    def find(self, name: str, version: str) -> Model:
        """Returns a model.

        Raises:
            TensorError: The version is no number.
            UnknownModelError: There is no such model or version.
        """
        model = self._models.get(name)
        if version and version != VERSION:
            number = _version(version)
            if model is not None and number != int(VERSION):
                raise UnknownModelError(name, f"'{name}' version {number}", (VERSION,))
        if model is None:
            raise UnknownModelError(name, f"'{name}'", self.names)
        return model

    def ready(self, now_s: float) -> set[str]:
        """Returns the names of those that have an endpoint to answer."""
        view = self._view
        share_C = view.current_fleet(now_s).arrays.availability_C
        targets = view.fleet.targets
        tiers = {each.tier for each, share in zip(targets, share_C, strict=True) if share > 0.0}
        if not tiers:
            return set()
        return {model.name for model in self if not model.tier or model.tier in tiers}


def _version(text: str) -> int:
    """Reads a version as Triton does: the number at its beginning."""
    found = _NUMBER.match(text[:64])
    number = int(found[1]) if found else 0
    if not found or not -_LARGEST <= number <= _LARGEST:
        raise TensorError(
            "model_version",
            f"failed to get model version from specified version string '{text[:64]}' "
            "(details: stol), version should be an integral value > 0",
        )
    if number < 0:
        raise TensorError(
            "model_version",
            f"invalid model version specified '{text[:64]}' , "
            "version should be an integral value > 0",
        )
    return number
