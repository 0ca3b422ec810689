"""The `[mesh]` section: its own mistakes, and those of the files it names."""

from __future__ import annotations

import pytest

from services.common.mesh_settings import load_mesh_files
from services.common.settings import SettingsError, load_settings
from services.common.state.redis_connection import RedisConnection
from tests.unit.services.common.settings_file import MESH, PROFILE, QUALITY, Root, Write, problems

TIERS = 'tiers = ["small", "large"]\nprofile'
DEADLINE = "default_deadline_s = 0.5"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('name = "reverse"', 'name = "Re!"', "mesh.tasks.0.name: string should match"),
        (TIERS, "tiers = []\nprofile", "mesh.tiers: tuple should"),
        (TIERS, 'tiers = ["small", "small"]\nprofile', "mesh.tiers.1: is used twice"),
        ("redis://127.0.0.1:6379/0", "http://x", "mesh.redis_url: expected redis://"),
        (DEADLINE, "default_deadline_s = nan", "mesh.tasks.0.default_deadline_s: input should"),
        (DEADLINE, "default_deadline_s = -1", "mesh.tasks.0.default_deadline_s: input should"),
        ('profile = "p.toml"\n', "", "mesh.profile: is missing"),
        ("127.0.0.1:8001", "127.0.0.1:80010", "mesh.endpoints.0.address: the port must be"),
        ("127.0.0.1:8001", "127.0.0.1:0", "mesh.endpoints.0.address: the port must be"),
    ],
)
def test_one_mistake(write: Write, old: str, new: str, problem: str) -> None:
    """Each mistake names its key and the limit."""
    assert old in MESH
    found = problems(write(MESH.replace(old, new)))
    assert any(line.startswith(f"FILE: {problem}") for line in found), found


def test_mesh_files_are_read_and_their_mistakes_listed_together(write: Write) -> None:
    """The catalog and the profiles come from the files; both files' mistakes appear."""
    path = write(MESH)
    mesh = load_settings(Root, path=path, environ={}).mesh
    files = load_mesh_files(mesh)
    assert files.catalog.tiers == ("small", "large")
    assert files.endpoint_profiles["triton-0"] is files.profile
    (path.parent / "p.toml").write_text(PROFILE.replace("step_s = 0.01\n", ""))
    (path.parent / "q.toml").write_text(QUALITY.replace("small = 0.5", "tiny = 0.5"))
    with pytest.raises(SettingsError) as caught:
        load_mesh_files(mesh)
    text = "\n".join(caught.value.problems)
    assert "p.toml: tiers.large.step_s: missing" in text
    assert "q.toml: quality.reverse.small: missing" in text


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:99999/0",
        "redis://h:0/0",
        "redis://h:abc/0",
        "redis://h:-1",
        "redis://h/notanumber",
        "redis://h/1/2",
        "redis://h/-1",
        "redis://h/99999999999",
        "redis://h/0?nonsense=1",
        "redis://h/0?decode_responses=True",
        "rediss://h/0?ssl_cert_reqs=maybe",
        "redis://h/0#part",
        "redis://[::1",
        "redis://h h/0",
        "redis://h/0\\n",
        "redis:///0",
        "redis://u:hunter2@/0",
        "unix://",
        "127.0.0.1:6379",
        "redis://" + "h" * 2000,
    ],
)
def test_a_wrong_redis_url_is_one_line_with_its_value(write: Write, url: str) -> None:
    """Whatever is wrong with the address is found before anything is connected."""
    (line,) = problems(write(MESH.replace("redis://127.0.0.1:6379/0", url)))
    assert line.startswith("FILE: mesh.redis_url: expected redis://")
    assert "not shown" not in line
    assert "hunter2" not in line
    assert len(line) < 400


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h:6379/",
        "redis://user:p%40ss@h:6379/15",
        "rediss://[::1]:6380/0?ssl_ca_certs=/etc/ca.pem",
        "unix:///run/redis.sock?db=3",
    ],
)
def test_redis_urls_that_work_are_accepted(write: Write, url: str) -> None:
    """Each form that Redis's own clients take is taken, and makes a connection."""
    text = MESH.replace("redis://127.0.0.1:6379/0", url)
    mesh = load_settings(Root, path=write(text), environ={}).mesh
    assert RedisConnection(mesh.redis_url).redis is not None


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("p.toml", "\ufeff" + PROFILE, ""),
        ("q.toml", "\ufeff" + QUALITY, ""),
        ("p.toml", PROFILE.replace("0.001", "nan"), "tiers.small.step_s: must be"),
        ("p.toml", PROFILE.replace("0.001", "1e999"), "tiers.small.step_s: must be"),
        ("p.toml", PROFILE.replace("0.01", "1e300"), "tiers.large.step_s: must be at most"),
        ("p.toml", PROFILE.replace("0.01", "9" * 5000), "not TOML"),
        ("p.toml", PROFILE + f"max_batch = 1{'0' * 400}\n", "not TOML: an integer does not"),
        ("p.toml", PROFILE.replace('"p"', f'"{"p" * 5000}"'), "name: must be"),
        ("p.toml", f'{PROFILE}"{"k" * 5000}" = 1\n', "tiers.large.kkk"),
        ("p.toml", PROFILE + '"a\\nb" = 1\n', "tiers.large.a b: unknown"),
        ("p.toml", "x = " + "[" * 100_000, "not TOML"),
        ("q.toml", "quality = 3", "quality: must have"),
        ("q.toml", "[quality]\nreverse = 3", "quality.reverse: must be a table"),
        ("q.toml", QUALITY + "[raw]\nreverse = [1]", "raw.reverse: must be a table"),
        ("q.toml", QUALITY.replace("0.5", "nan"), "quality.reverse.small: must be from 0 to 1"),
        ("q.toml", QUALITY.replace("0.5", "9" * 5000), "not TOML"),
        ("q.toml", "x = " + "[" * 100_000, "not TOML"),
    ],
)
def test_files_of_the_mesh_are_read_with_suspicion(
    write: Write, file: str, text: str, problem: str
) -> None:
    """Marks are accepted; numbers that are none, huge ones and other shapes are one line."""
    path = write(MESH)
    (path.parent / file).write_text(text, encoding="utf-8")
    mesh = load_settings(Root, path=path, environ={}).mesh
    if not problem:
        load_mesh_files(mesh)
        return
    with pytest.raises(SettingsError) as caught:
        load_mesh_files(mesh)
    assert any(f"{file}: {problem}" in line for line in caught.value.problems)
    assert all(len(line) < 400 for line in caught.value.problems)
