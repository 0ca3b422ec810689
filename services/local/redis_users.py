"""Users of Redis: each service has its own keys and commands, and a password drawn here."""

from __future__ import annotations

import hashlib
import pathlib
import secrets
import stat

from services.common.files import open_folder, write_whole
from services.local.errors import CommandError
from trainer.shipped import shipped

SERVICES = ("router-inference", "load-monitor", "trainer")
URL_VARIABLE = "TIERCEL_MESH__REDIS_URL"
_NO_PASSWORD = "resetpass"  # noqa: S105 - a word of the file's language


def make_redis_users(folder: pathlib.Path, *, address: str, roots: str) -> list[pathlib.Path]:
    """Draws passwords and writes Redis' ACL file, and each service's URL.

    Passwords that are there stay, and so do users that are none of ours; what ours may do becomes
    what this version needs.

    Args:
        folder: Gets `redis/users.acl`, and per service `redis.env` in the folder of its name.
        address: `host:port` at which the services reach Redis.
        roots: The file of roots, as the services see it.

    Returns:
        The files that were written.

    Raises:
        CommandError: A file cannot be read or written.
    """
    target = folder / "redis" / "users.acl"
    try:
        before = target.read_text(encoding="utf-8", errors="replace") if target.exists() else ""
        lines = shipped("deploy", "redis", "users.acl").read_text(encoding="utf-8").splitlines()
        ours = {_user(line)[0] for line in lines}
        known = dict(map(_user, before.splitlines()))
        written = []
        for service in SERVICES:
            passwords = known.get(service)
            if not passwords:
                password = secrets.token_urlsafe(32)
                passwords = [f"#{hashlib.sha256(password.encode()).hexdigest()}"]
                url = f"rediss://{service}:{password}@{address}/0?ssl_ca_certs={roots}"
                written.append(folder / service / "redis.env")
                open_folder(written[-1].parent)
                write_whole(written[-1], f"{URL_VARIABLE}={url}\n".encode(), mode=0o600)
            start = f"user {service} on "
            new = start + " ".join(passwords)
            lines = [line.replace(start + _NO_PASSWORD, new) for line in lines]
        lines += [line for line in before.splitlines() if _user(line)[0] not in {*ours, ""}]
        text = "\n".join(lines) + "\n"
        # Redis in a container is another user.
        is_closed = target.exists() and not target.stat().st_mode & stat.S_IROTH
        if text != before or is_closed:
            open_folder(target.parent)
            write_whole(target, text.encode(), mode=0o644)
            written.append(target)
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror or error}") from None
    return written


def _user(line: str) -> tuple[str, list[str]]:
    """Returns whom a line of the file is about, empty for nobody, and that user's passwords."""
    words = line.split()
    if len(words) < 2 or words[0] != "user":
        return "", []
    return words[1], [word for word in words[2:] if word[0] in "#>"]
