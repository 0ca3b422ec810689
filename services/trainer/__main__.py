"""Starts the trainer: `python -m services.trainer --config FILE`."""

from __future__ import annotations

from services.common.lifecycle import run_service
from services.trainer.app import build_app
from services.trainer.settings import Settings

if __name__ == "__main__":
    run_service(
        name="trainer",
        description="Learns from experience and in simulation, and keeps the policy registry.",
        settings_type=Settings,
        build=build_app,
    )
