"""When certificates hold, told from their bytes alone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.common.access.validity import Validity, validities
from tests.certificates import write_certificate


@pytest.mark.parametrize(
    ("start", "end"),
    [("1999-12-31", "2049-12-31"), ("2020-02-29", "2050-01-01"), ("2051-01-01", "9999-12-31")],
)
def test_both_forms_of_dates_are_read(start: str, end: str, tmp_path: Path) -> None:
    """Years to 2049 have two digits in a certificate, later ones four."""
    path = tmp_path / "root.pem"
    write_certificate(path, start=start, end=end)
    utc = [datetime.fromisoformat(each).replace(tzinfo=UTC) for each in (start, end)]
    assert list(validities(path.read_bytes() + b"# and\n" + path.read_bytes())) == [
        Validity(*utc),
        Validity(*utc),
    ]


def test_what_is_no_certificate_is_said() -> None:
    """The bytes between the marks are somebody else's."""
    with pytest.raises(ValueError, match="is no certificate"):
        list(validities(b"-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n"))


def test_the_last_second_still_holds() -> None:
    """Start and end belong to the time."""
    found = Validity(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))
    assert [found.problem(moment) for moment in found] == ["", ""]
    late = datetime(2026, 1, 2, 0, 0, 1, tzinfo=UTC)
    assert found.problem(late) == "expired on 2026-01-02 00:00 UTC"
