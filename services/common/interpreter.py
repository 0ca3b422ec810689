"""Sets the interpreter up for a process that answers requests in one loop."""

from __future__ import annotations

import gc
import sys

_GC_THRESHOLDS = (50_000, 20, 100)
_SWITCH_S = 0.000_5


def suit_requests() -> None:
    """Leaves what was imported out of collections, and gives the loop the interpreter back soon.

    To be called once everything is imported and built, before the process serves.
    """
    # A request makes some hundred short-lived objects and hardly a cycle. At its defaults the
    # collector takes about a quarter of the process's time walking what was imported at start.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    # While spans are written for export, or metrics for a scrape, the loop gets the interpreter
    # back only after this time, and a request needs it twice; the default is ten times as long.
    sys.setswitchinterval(_SWITCH_S)
