"""Starts the OpenAI-shaped door: `python -m services.openai_door --config FILE`."""

from __future__ import annotations

from services.common.lifecycle import run_service
from services.openai_door.app import build_app
from services.openai_door.settings import Settings

if __name__ == "__main__":
    run_service(
        name="openai-door",
        description="Takes requests of OpenAI clients over HTTP and has the routers answer them.",
        settings_type=Settings,
        build=build_app,
    )
