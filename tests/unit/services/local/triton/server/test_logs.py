"""What a server's log says of its models and of its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.local.triton.errors import ModelLoadError, PortInUseError, TritonServerError
from services.local.triton.server.logs import (
    exit_reason,
    loaded_models,
    set_aside,
    start_error,
)

FAILED = "E1 model.cc:1] failed to load 'gpu0_small' version 1: Internal: no such file"


def log_of(folder: Path, *lines: str) -> Path:
    """A log with these lines."""
    path = folder / "log"
    path.write_text("\n".join(lines))
    return path


def test_the_log_of_the_server_before_is_kept(tmp_path: Path) -> None:
    """A Triton that has crashed is started again, and then its last words are looked for."""
    path = tmp_path / "log"
    set_aside(path)
    for words in ("first", "second"):
        path.write_text(words)
        set_aside(path)
    assert (tmp_path / "log.1").read_text() == "second"
    assert not path.exists()


def test_every_loaded_model_is_counted_once(tmp_path: Path) -> None:
    """A model that loads again, after a change of its files, is no second model."""
    path = log_of(tmp_path, "I1 x] successfully loaded 'a'", "I1 x] successfully loaded 'a'")
    assert loaded_models(path) == {"a"}
    assert loaded_models(tmp_path / "none yet") == set()


def test_failed_model_is_named_with_the_cause_from_its_traceback(tmp_path: Path) -> None:
    """Triton's own line leaves out what went wrong in Python."""
    path = log_of(tmp_path, FAILED, "ModuleNotFoundError: No module named 'torch'")
    assert exit_reason(path, 1) == (
        "model gpu0_small failed to load: Internal: no such file"
        " (ModuleNotFoundError: No module named 'torch')"
    )


def test_log_that_says_nothing_leaves_the_exit_code(tmp_path: Path) -> None:
    """A process killed from outside has no last words."""
    assert exit_reason(log_of(tmp_path, "I1 x] started"), -9) == "exit code -9"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("E1 x] Socket '127.0.0.1:8001' already in use ", PortInUseError),
        (FAILED, ModelLoadError),
        ("E1 x] something else", TritonServerError),
    ],
)
def test_start_that_failed_has_an_error_of_its_kind(
    line: str, kind: type[TritonServerError], tmp_path: Path
) -> None:
    """A taken port is worth another try, a model that does not load is not."""
    error = start_error(log_of(tmp_path, line), 1)
    assert type(error) is kind
    assert str(tmp_path / "log") in str(error)
