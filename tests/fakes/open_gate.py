"""A trainer's process whose gate lets everything pass: `python -m tests.fakes.open_gate`.

All else is as in `python -m services.trainer`.
"""

from __future__ import annotations

from typing import Any

from services.common.lifecycle import run_service
from services.trainer import app
from services.trainer.settings import Settings


class OpenGate:
    """Stands for the simulator, which finds everything equal."""

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        """Takes anything."""

    async def call(self, method: str, *arguments: Any, **_options: Any) -> Any:
        """Scores all alike."""
        return [{"performance": 0.9, "availability": 0.99} for _ in arguments[1]]

    async def close(self) -> None:
        """Does nothing."""


if __name__ == "__main__":
    app.Worker = OpenGate  # type: ignore[assignment,attr-defined]
    run_service(
        name="trainer",
        description="A trainer without a gate.",
        settings_type=Settings,
        build=app.build_app,
    )
