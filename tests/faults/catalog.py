"""All cases of the matrix, in the order of the page."""

from __future__ import annotations

from tests.faults.case import Case
from tests.faults.cases import mistakes, processes

CASES: list[Case] = [*processes.CASES, *mistakes.CASES]
