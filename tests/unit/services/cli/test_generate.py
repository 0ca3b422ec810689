"""``tiercel generate``."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from services.cli.app import run
from services.local.manifest import Manifest, run_folder, started_ticks
from tests.fakes.router import FakeRouter
from tests.fakes.router_process import mesh_toml
from tests.unit.services.cli.said import complaint


def test_generate_prints_the_answer_alone_on_standard_output(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The text can be piped; what is known about it goes to standard error."""
    fake, address = router
    assert run(["generate", "rev:ab=", "--router", address, "--deadline", "0.7"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "REV:AB=\n"
    assert "tier large" in captured.err
    assert "10 ms, 390 ms early" in captured.err
    assert captured.err.endswith("queue 1 ms, prefill 2 ms, decode 3 ms, hop 4 ms\n")
    trace_id = re.search(r"trace ([0-9a-f]{32})$", captured.err, re.MULTILINE)
    assert trace_id
    # Sampled, so that every router keeps its spans of it.
    _, sent, _, flags = fake.metadata[0]["traceparent"].split("-")
    assert (sent, int(flags, 16) & 1) == (trace_id[1], 1)
    assert fake.specs[0].task == "reverse"
    assert fake.specs[0].deadline.ToMilliseconds() == 700


def test_generate_streams_and_speaks_json(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Both forms carry the same answer."""
    _, address = router
    assert run(["generate", "rev:ab=", "--router", address, "--stream"]) == 0
    assert capsys.readouterr().out == "REV:AB=\n"
    assert run(["generate", "rev:ab=", "--router", address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "REV:AB="


def test_a_prompt_that_names_no_task_is_of_the_default_one(
    router: tuple[FakeRouter, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the settings, where they are known; else the router has it."""
    fake, address = router
    assert run(["generate", "hello", "--router", address]) == 0
    path = tmp_path / "tiercel.toml"
    for own, code in (('default_task = "copa"', 0), ("", 2)):
        path.write_text(mesh_toml([("e0", "127.0.0.1:1")], router=own), encoding="utf-8")
        asked = ["generate", "hello", "--router", address, "--config", str(path)]
        assert run(asked) == code
    assert "--task: this prompt names no task; give one of" in capsys.readouterr().err
    assert [spec.task for spec in fake.specs] == ["", "copa"]


def test_a_refused_request_is_one_line_with_its_reason(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A refusal is not a traceback."""
    assert run(["generate", "rev:no=", "--router", router[1]]) == 1
    assert "TOO_LATE" in complaint(capsys)


@pytest.mark.parametrize("prompt", ["What is the capital of France?", "hello"])
def test_reference_tiers_are_told_for_what_they_are_before_anything_is_sent(
    prompt: str, router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With the alphabet where a character is outside it, and always with what works."""
    fake, address = router
    started = started_ticks(os.getpid())
    Manifest("m", os.getpid(), started, "reference", "", (address,), {}, {}, {}, {}).write(
        run_folder("m")
    )
    assert run(["generate", prompt]) == 2
    said = complaint(capsys)
    assert "tiercel generate 'sort:hgcafde='" in said
    assert ("abcdefghijklmnopqrstuvwxyz0123456789:=+?" in said) == (prompt != "hello")
    assert not fake.specs


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ROOT_CERTIFICATES": "none.crt"}, "none.crt: cannot be read: No such file or directory"),
        ({"ROOT_CERTIFICATES": "text.crt"}, "text.crt: is no PEM file"),
        ({"CERTIFICATE": "text.crt"}, "give the roots alone, or all three"),
    ],
)
def test_certificates_that_cannot_be_used_are_named(
    variables: dict[str, str],
    said: str,
    router: tuple[FakeRouter, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything is sent, with the variable that names them."""
    (tmp_path / "text.crt").write_text("hello", encoding="utf-8")
    for name, file in variables.items():
        monkeypatch.setenv(f"TIERCEL_MESH__TLS__{name}", str(tmp_path / file))
    assert run(["generate", "rev:ab=", "--router", router[1]]) == 2
    complained = complaint(capsys)
    assert said in complained
    assert "TIERCEL_MESH__TLS__" in complained


def test_settings_of_a_running_mesh_that_are_wrong_are_bad_input(
    router: tuple[FakeRouter, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A variable that changes them and holds nonsense is named, and is no bug."""
    path = tmp_path / "tiercel.toml"
    path.write_text(mesh_toml([("e0", "127.0.0.1:1")]), encoding="utf-8")
    started = started_ticks(os.getpid())
    Manifest("m", os.getpid(), started, "paced", str(path), (router[1],), {}, {}, {}, {}).write(
        run_folder("m")
    )
    monkeypatch.setenv("TIERCEL_ROUTER_INFERENCE__WORKERS", "many")
    assert run(["generate", "hello"]) == 2
    assert "TIERCEL_ROUTER_INFERENCE__WORKERS: router_inference.workers" in complaint(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--deadline", "-1"], "--deadline: must be above 0 seconds, got -1"),
        (["--quality-floor", "3"], "--quality-floor: must be 0 to 1, got 3"),
        (["--priority", "urgent"], "--priority: must be high, normal, low, got 'urgent'"),
    ],
)
def test_an_option_that_cannot_be_is_named_before_a_router_is_asked(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its limits and what was given; nobody listens at the address."""
    assert run(["generate", "hi", "--router", "127.0.0.1:9", *arguments]) == 2
    assert complaint(capsys) == f"tiercel: {message}\n"
