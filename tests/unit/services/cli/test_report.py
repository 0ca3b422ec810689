"""``tiercel report``, asked of a fake monitor."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from services.cli.app import run
from tests.unit.services.cli.said import complaint
from tests.unit.services.common.test_books import hindsight, minute, task
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as pb
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as pb_grpc
from tiercel.load_monitor.v1 import minutes_pb2

SPAN = ["--from", "2026-11-29T01:00", "--to", "2026-11-29T03:00"]


def books() -> list[minutes_pb2.Minute]:
    """Two minutes of two tasks in each of two hours; only the second hour has hindsight."""
    found = []
    for number in (0, 1, 60, 61):
        tasks = task(on_time=98, late=2, quality=0.9, target=0.99), task("chat", on_time=10)
        tasks[0].smooth_answer_sum = 98.9
        looked = hindsight(110, 109.0, 0.5, 0.7, 0.95) if number >= 60 else None
        if looked is not None:
            looked.tasks.add(task="chat", recorded_count=10, bound_sum=10.0)
            looked.tasks[0].recorded_count, looked.tasks[0].bound_sum = 100, 98.2
        each = minute(*tasks, hindsight=looked)
        each.start_time.FromJsonString("2026-11-29T01:00:00Z")
        each.start_time.seconds += 60 * number
        found.append(each)
    return found


class FakeMonitor(pb_grpc.LoadMonitorServiceServicer):
    """Tells one minute at a time."""

    def __init__(self) -> None:
        self.asked: list[pb.ListMinutesRequest] = []
        self.minutes = books()

    async def ListMinutes(self, request: Any, context: Any) -> pb.ListMinutesResponse:
        """Returns the first minute asked for, and where to go on."""
        self.asked.append(request)
        start_s, end_s = request.start_time.seconds, request.end_time.seconds
        found = [each for each in self.minutes if start_s <= each.start_time.seconds < end_s]
        reply = pb.ListMinutesResponse(minutes=found[:1])
        if len(found) > 1:
            reply.next_start_time.CopyFrom(found[1].start_time)
        return reply


@pytest.fixture
def monitor(serve_monitor: Callable[[Any], str]) -> tuple[FakeMonitor, str]:
    """A fake monitor and its address."""
    fake = FakeMonitor()  # type: ignore[abstract]
    return fake, serve_monitor(fake)


def test_a_report_says_what_was_saved_and_what_it_cost(
    monitor: tuple[FakeMonitor, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """In 80 columns: the verdict, each task, the tiers, and a row for each hour."""
    fake, address = monitor
    assert run(["report", *SPAN, "--by", "hour", "--monitor", address]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert lines[0].rstrip() == "2026-11-29 01:00 to 2026-11-29 03:00 UTC"
    text = " ".join(" ".join(lines).split())
    assert "0.9818 of 440 requests were in time, at a quality of 0.893" in text
    assert "would have needed 3 devices for that, the mesh has 2: 1 saved." in text
    assert "Below target: sort." in text
    assert "sort 400 0.9800! 8 0 0 0.99 4/4" in text
    assert "sort 0.882 0.118 0.100" in text
    # A late answer counts its part; of the other task no router told a sum.
    assert "answers per second in time smooth sort 1.63 1.65 chat 0.17 -" in text
    assert "over 2 of 4 minutes with requests" in text
    assert "2026-11-29 01:00 220 0.9818 0.893 0.107 - -" in text
    assert "2026-11-29 02:00 220 0.9818 0.893 0.107 0.091 3" in text
    assert len(fake.asked) == 4


def test_json_and_page_have_the_same_facts(
    monitor: tuple[FakeMonitor, str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page stands alone: verdict and picture first, then the tables."""
    _, address = monitor
    place = tmp_path / "pages" / "report.html"
    assert run(["report", *SPAN, "--json", "--html", str(place), "--monitor", address]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["tasks"]["sort"]["late"], facts["devices"]["saved"]) == (8, 1.0)
    assert facts["tasks"]["sort"]["p50_s"] == pytest.approx(0.125, rel=0.05)
    page = place.read_text()
    assert page.index(facts["verdict"]) < page.index("<svg") < page.index("<table")
    assert " src=" not in page
    assert "<link" not in page


def test_a_median_among_what_was_cut_off_is_told_as_such(
    monitor: tuple[FakeMonitor, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is known to be longer than every answer, and is not unknown."""
    fake, address = monitor
    fake.minutes = [minute(task(on_time=10, late=90))]
    fake.minutes[0].start_time.FromJsonString("2026-11-29T01:00:00Z")
    assert run(["report", *SPAN, "--monitor", address]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert "cut off cut off 200" in " ".join(" ".join(lines).split())
    assert run(["report", *SPAN, "--json", "--monitor", address]) == 0
    sort = json.loads(capsys.readouterr().out)["tasks"]["sort"]
    assert (sort["p50_s"], sort["p50_is_cut_off"], sort["p99_is_cut_off"]) == (None, True, True)


@pytest.mark.parametrize(
    ("minutes", "text"),
    [([], "no load monitor has watched the mesh"), ([minute()], "No request ended")],
)
def test_a_time_without_requests_is_no_good_time(
    minutes: list[minutes_pb2.Minute],
    text: str,
    monitor: tuple[FakeMonitor, str],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is not known is not told as if it were; a page can be written all the same."""
    fake, address = monitor
    fake.minutes = minutes
    for each in minutes:
        each.start_time.FromJsonString("2026-11-29T01:00:00Z")
    page = str(tmp_path / "report.html")
    assert run(["report", *SPAN, "--html", page, "--monitor", address]) == 0
    assert text in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--since", "1"], "--since: expected a time such as"),
        (["--since", "1h", "--from", "10:00"], "--since: not together with --from"),
        (["--from", "yesterday"], "--from: expected a time such as 14:30"),
        (["--from", "2026-01-02T00:00", "--to", "2026-01-01T00:00"], "--from: must be before"),
        (["--from", "2999-01-01T00:00", "--to", "3000-01-01T00:00"], "must not be in the future"),
        (["--to", "2999-01-01T00:00"], "--to: must not be in the future"),
        (["--to", "9999-12-31T23:00-05:00"], "--to: must be in the years 1970 to 9999"),
        (["--by", "year"], "--by: expected one of minute, hour, day"),
    ],
)
def test_bad_input_names_what_is_wrong(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a monitor is asked."""
    assert run(["report", *arguments, "--monitor", "127.0.0.1:1"]) == 2
    assert text in complaint(capsys)
