"""The command line of a service: the settings file and overrides over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.arguments import parse_arguments


def parsed(*argv: str) -> tuple[Path | None, dict[str, str]]:
    """Returns file and overrides of a command line."""
    found = parse_arguments(program="p", section="load_monitor", description="d.", argv=argv)
    return found.config, found.overrides


def test_overrides_come_from_options_and_settings() -> None:
    """`--listen` writes to the service's own section; a value may hold the separator."""
    config, overrides = parsed(
        "--config", "t.toml", "--listen", "h:1", "--set", "mesh.redis_url=redis://h/0?a=b"
    )
    assert config == Path("t.toml")
    assert overrides == {"load_monitor.listen": "h:1", "mesh.redis_url": "redis://h/0?a=b"}


@pytest.mark.parametrize("text", ["mesh.name", "name=x"])
def test_a_malformed_override_ends_the_process(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and a line that shows the form."""
    with pytest.raises(SystemExit) as caught:
        parsed("--set", text)
    assert caught.value.code == 2
    assert "expected SECTION.KEY=VALUE" in capsys.readouterr().err


def test_a_service_may_have_options_of_its_own() -> None:
    """Each writes to a key of its section, if it is given."""
    for argv, overrides in (((), {}), (("--workers", "2"), {"router_inference.workers": "2"})):
        found = parse_arguments(
            program="p",
            section="router_inference",
            description="d.",
            options={"workers": "processes"},
            argv=argv,
        )
        assert found.overrides == overrides
