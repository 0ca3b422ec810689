"""What an endpoint says of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ROUTER_BACKEND = "tiercel"
"""What routers call the backend of their models, which clients of Triton can ask too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierModelConfig:
    """The part of a model's configuration that the mesh reads.

    Attributes:
        model: Model name.
        backend: Triton's backend, for example `python` or `vllm`; empty at other servers.
        parameters: String parameters.
        max_batch: Triton's own `max_batch_size`; 0 where the model batches by itself.
        inputs: Names of its inputs in Triton.
        counts_prompts: Whether it tells the length of a prompt in its own tokens when asked to.
    """

    model: str
    backend: str
    parameters: Mapping[str, str]
    max_batch: int
    inputs: frozenset[str]
    counts_prompts: bool

    @property
    def is_of_router(self) -> bool:
        """Whether it is a router's, which has no tier of its own."""
        return self.backend == ROUTER_BACKEND

    @property
    def kind(self) -> str:
        """`reference`, `paced` or `production`; empty when the model does not say."""
        return self.parameters.get("tiercel_kind", "")

    @property
    def tier(self) -> str:
        """The tier this model serves; empty when the model does not say."""
        return self.parameters.get("tiercel_tier", "")
