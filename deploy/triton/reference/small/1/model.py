"""Loads the one model source that all reference tiers share, ``deploy/triton/common``.

Triton takes every folder of a model repository for a model, so the shared part lies beside the
repository.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "common"))

from reference_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
