"""Settings of the door, and what they make of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.clock import SystemClock
from services.common.log import get_logger
from services.common.settings import SettingsError, load_settings
from services.openai_door.app import OpenAiDoor, template_of
from services.openai_door.chat_template import Message
from services.openai_door.settings import Settings
from tests import certificates
from tests.fakes.openai_door import door_toml


def read(folder: Path, *lines: str, routers: tuple[str, ...] = ("127.0.0.1:7410",)) -> Settings:
    """Reads a settings file with more lines of [openai_door]."""
    path = folder / "tiercel.toml"
    path.write_text(door_toml(routers, *lines), encoding="utf-8")
    return load_settings(Settings, path=path, environ={})


def test_a_template_of_ones_own_is_used(tmp_path: Path) -> None:
    """Roles that it does not name keep the plain form."""
    settings = read(
        tmp_path,
        'chat_template = "own"',
        "[openai_door.own_template]",
        'begin = "<s>"',
        'user = "[INST] {content} [/INST]"',
        'answer = ""',
    )
    prompt = template_of(settings.openai_door).render([Message("user", "hi", "messages[0]")])
    assert prompt == "<s>[INST] hi [/INST]"


def test_bodies_have_room_for_the_longest_prompt(tmp_path: Path) -> None:
    """As JSON, where each of its bytes may take six; a size of one's own is kept."""
    assert read(tmp_path).max_body_bytes == 6 * 65_536 + 65_536
    assert read(tmp_path, "max_body_bytes = 70000").max_body_bytes == 70_000


def test_a_template_without_its_text_is_refused(tmp_path: Path) -> None:
    """Every prompt would lose it."""
    with pytest.raises(SettingsError, match=r"own_template\.user: must hold"):
        read(tmp_path, "[openai_door.own_template]", 'user = "User:"')


def build(settings: Settings) -> OpenAiDoor:
    """Builds a door."""
    return OpenAiDoor(settings=settings, clock=SystemClock(), log=get_logger("test"))


@pytest.mark.parametrize(
    ("router", "listen", "problem"),
    [
        ("127.0.0.1:7410", "0.0.0.0:0", r"openai_door\.listen: other .* TLS .* authentication"),
        ("router:7410", "127.0.0.1:0", r"openai_door\.routers: router:7410 .* needs TLS"),
    ],
)
def test_what_other_machines_reach_needs_protection(
    tmp_path: Path, router: str, listen: str, problem: str
) -> None:
    """Unless the settings say that it shall have none."""
    path = tmp_path / "tiercel.toml"
    text = door_toml([router], listen=listen)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=problem):
        build(load_settings(Settings, path=path, environ={}))
    path.write_text(f"{text}\ninsecure_open_to_network = true\n", encoding="utf-8")
    assert build(load_settings(Settings, path=path, environ={})).name == "openai-door"


def test_by_tls_routers_may_be_anywhere(tmp_path: Path) -> None:
    """Prompts and keys are protected on the way then."""
    path = tmp_path / "tiercel.toml"
    own = certificates.tls_settings("router-inference")
    tls = "\n".join(
        f'{key} = "{getattr(own, key)}"' for key in ("root_certificates", "certificate", "key")
    )
    text = door_toml(["router:7410"]).replace(
        "[[mesh.tasks]]", f"[mesh.tls]\n{tls}\n[[mesh.tasks]]", 1
    )
    path.write_text(text, encoding="utf-8")
    assert build(load_settings(Settings, path=path, environ={})).name == "openai-door"
