"""JSON Web Tokens as an identity: signed by a key of a JWKS file, and remembered while good."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.common.checks import is_name
from services.common.files import read_bytes
from services.common.log import Logger
from services.common.settings import SettingsError

_ALGORITHMS = ("ES256", "ES384", "EdDSA", "RS256", "PS256")
_LARGEST_FILE_BYTES = 1024 * 1024
LONGEST_TOKEN_CHARACTERS = 4_096
_MOST_REMEMBERED = 4_096
_LOOK_AGAIN_S = 5.0
_LEEWAY_S = 10.0
_SECTION = "mesh.access.jwks_file"


class TokenReader:
    """Checks tokens.

    Checking a signature takes some hundred microseconds, so a token that was good is remembered
    until it ends; how many are remembered is bounded.

    Args:
        path: JWKS file; read again when it changes.
        issuer: Who must have issued a token.
        audience: For whom it must be.
        monotonic_s: Tells when to look at the file again.
        wall_s: The time that tokens end by.
        log: Where a bad file is said; the keys in use stay then.

    Raises:
        SettingsError: The file cannot be used at the start, or a package is not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        issuer: str,
        audience: str,
        monotonic_s: Callable[[], float],
        wall_s: Callable[[], float],
        log: Logger,
    ) -> None:
        try:
            importlib.import_module("cryptography")  # PyJWT's algorithms of ours need it
            import jwt
        except ImportError:
            raise SettingsError(
                [f"{_SECTION}: needs PyJWT and cryptography: pip install 'tiercel[security]'"]
            ) from None
        self._jwt = jwt
        self._path = path
        self._issuer = issuer
        self._audience = audience
        self._monotonic_s = monotonic_s
        self._wall_s = wall_s
        self._log = log
        self._stamp = self._look()
        self._look_s = monotonic_s() + _LOOK_AGAIN_S
        self._keys = self._read()
        self._good: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def client_of(self, token: str) -> str | None:
        """Returns the subject of a token, None if it is not good."""
        self._refresh()
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        known = self._good.get(digest)
        if known is not None:
            client, end_s = known
            return client if self._wall_s() < end_s else None
        found = self._check(token)
        if found is None:
            return None
        self._good[digest] = found
        if len(self._good) > _MOST_REMEMBERED:
            self._good.popitem(last=False)
        return found[0]

    def _check(self, token: str) -> tuple[str, float] | None:
        if len(token) > LONGEST_TOKEN_CHARACTERS:
            return None
        try:
            name = str(self._jwt.get_unverified_header(token).get("kid", ""))
            claims = self._jwt.decode(
                token,
                self._keys[name],
                algorithms=list(_ALGORITHMS),
                issuer=self._issuer,
                audience=self._audience,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "sub", "iss", "aud"]},
            )
            client, end_s = claims["sub"], float(claims["exp"]) + _LEEWAY_S
        except (self._jwt.PyJWTError, KeyError, ValueError, TypeError, OverflowError):
            return None
        if not isinstance(client, str) or not is_name(client):
            return None
        return client, end_s

    def _refresh(self) -> None:
        if self._monotonic_s() < self._look_s:
            return
        self._look_s = self._monotonic_s() + _LOOK_AGAIN_S
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = self._read()
        except SettingsError as error:
            self._log.error("token_keys_refused", problems=error.problems)
        else:
            # A key that was taken out no longer vouches for what it signed.
            self._good.clear()

    def _read(self) -> dict[str, Any]:
        try:
            content = read_bytes(self._path, _LARGEST_FILE_BYTES)
            found = self._jwt.PyJWKSet.from_dict(json.loads(content))
        except OSError as error:
            problem = f"cannot be read: {error.strerror or error}"
            raise SettingsError([f"{_SECTION}: {self._path}: {problem}"]) from None
        # RuntimeError: nested too deep, or `alg` names one that has no keys (`none`).
        except (ValueError, TypeError, AttributeError, RuntimeError, self._jwt.PyJWTError):
            raise SettingsError([f"{_SECTION}: {self._path}: is no JWKS file"]) from None
        keys = {str(key.key_id or ""): key for key in found.keys}
        if len(keys) < len(found.keys):
            problem = "has two keys with one id (kid), or two without"
            raise SettingsError([f"{_SECTION}: {self._path}: {problem}"])
        return {name: key for name, key in keys.items() if key.key_type != "oct"}

    def _look(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino
