"""Starts the load monitor: `python -m services.load_monitor --config FILE`."""

from __future__ import annotations

from services.common.lifecycle import run_service
from services.load_monitor.app import build_app
from services.load_monitor.settings import Settings

if __name__ == "__main__":
    run_service(
        name="load-monitor",
        description="Collects load and health of the mesh and publishes one shared picture.",
        settings_type=Settings,
        build=build_app,
    )
