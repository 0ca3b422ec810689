"""Names of policies on the command line, checked before anything is started."""

from __future__ import annotations

from collections.abc import Sequence

from router.picker import PICKERS
from router.policies.table import PICKER_MARK
from services.local.errors import InputError


def check_policy(option: str, policy: str, known: Sequence[str]) -> None:
    """Checks the name of a policy, and that of the picker that may follow it.

    Args:
        option: The option that gave it.
        policy: What was given.
        known: Names of the policies there are.

    Raises:
        InputError: It is no name of a policy, or of no picker.
    """
    name, mark, picker = policy.partition(PICKER_MARK)
    if name not in known:
        raise InputError(f"{option}: unknown policy {name!r}; known: {', '.join(known)}")
    if mark and picker not in PICKERS:
        raise InputError(f"{option}: unknown picker {picker!r}; known: {', '.join(PICKERS)}")
