"""Users of Redis: each service has its own keys and commands, and a password drawn here."""

from __future__ import annotations

import hashlib
import pathlib
import secrets

from services.local.errors import CommandError
from trainer.shipped import shipped

SERVICES = ("router-inference", "load-monitor", "trainer")
URL_VARIABLE = "TIERCEL_MESH__REDIS_URL"
_NO_PASSWORD = "resetpass"  # noqa: S105 - a word of the file's language


def make_redis_users(folder: pathlib.Path, *, address: str, roots: str) -> list[pathlib.Path]:
    """Draws passwords and writes Redis' ACL file, and each service's URL; once there they stay.

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
    if target.exists():
        return []
    try:
        lines = shipped("deploy", "redis", "users.acl").read_text(encoding="utf-8").splitlines()
        written = []
        for service in SERVICES:
            password = secrets.token_urlsafe(32)
            digest = hashlib.sha256(password.encode()).hexdigest()
            start = f"user {service} on {_NO_PASSWORD} "
            lines = [line.replace(start, f"user {service} on #{digest} ") for line in lines]
            url = f"rediss://{service}:{password}@{address}/0?ssl_ca_certs={roots}"
            written.append(folder / service / "redis.env")
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            written[-1].write_text(f"{URL_VARIABLE}={url}\n", encoding="utf-8")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror or error}") from None
    return [*written, target]
