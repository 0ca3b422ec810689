"""Starts the router: `python -m services.router_inference --config FILE`."""

from __future__ import annotations

from services.common.lifecycle import run_service
from services.router_inference.app import build_app
from services.router_inference.settings import Settings
from services.router_inference.workers.parent import run_router

if __name__ == "__main__":
    run_service(
        name="router-inference",
        description="Serves LLM requests in time at the best quality the fleet affords.",
        settings_type=Settings,
        build=build_app,
        run_it=run_router,
        options={"workers": "processes that share the port, the ledger and the router's name"},
    )
