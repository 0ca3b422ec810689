"""Where the files that come with the product are: profiles, quality tables, policies, models."""

from __future__ import annotations

from pathlib import Path


def project_root() -> Path:
    """Returns the checkout this module lives in, or the working directory when installed."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() else Path.cwd()
