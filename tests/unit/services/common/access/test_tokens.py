"""JSON Web Tokens: whose they are, and every way in which one is not good."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from services.common.access.tokens import TokenReader
from services.common.log import get_logger
from services.common.settings import SettingsError

NOW_S = 1_800_000_000.0


class Rig:
    """An issuer with a key, and a reader on clocks that the test moves."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "jwks.json"
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.wall_s = NOW_S
        self.monotonic_s = 0.0
        self.write({"k1": self.key})
        self.reader = self.start()

    def start(self) -> TokenReader:
        """Reads the file as a service does that starts."""
        return TokenReader(
            self.path,
            issuer="https://id.example",
            audience="tiercel",
            monotonic_s=lambda: self.monotonic_s,
            wall_s=lambda: self.wall_s,
            log=get_logger("test"),
        )

    def write(self, keys: dict[str, ec.EllipticCurvePrivateKey]) -> None:
        """Writes the public halves as a JWKS file."""
        rows = []
        for name, key in keys.items():
            row = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
            rows.append({**row, "kid": name, "alg": "ES256"})
        self.path.write_text(json.dumps({"keys": rows}))

    def token(self, *, kid: str = "k1", key: Any = None, alg: str = "ES256", **claims: Any) -> str:
        """Returns a signed token; claims that are None are left out."""
        good = {
            "sub": "shop",
            "iss": "https://id.example",
            "aud": "tiercel",
            "exp": 4_000_000_000,
        }
        kept = {name: value for name, value in {**good, **claims}.items() if value is not None}
        return jwt.encode(kept, self.key if key is None else key, alg, headers={"kid": kid})


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A reader that knows one key."""
    return Rig(tmp_path)


def test_a_good_token_names_its_client(rig: Rig) -> None:
    """Its subject is the client, again when it is remembered."""
    token = rig.token()
    assert [rig.reader.client_of(token) for _ in range(3)] == ["shop"] * 3


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other.example"},
        {"aud": "other"},
        {"exp": 1_000},
        {"exp": None},
        {"sub": None},
        {"sub": "not a name"},
        {"iss": None},
        {"aud": None},
        {"nbf": 4_000_000_000},
        {"kid": "k2"},
        {"key": "a secret of sufficient length......", "alg": "HS256"},
    ],
    ids=str,
)
def test_a_token_that_is_not_good_is_nobodys(rig: Rig, claims: dict[str, Any]) -> None:
    """Another issuer, audience, key or algorithm, or a time that is over."""
    assert rig.reader.client_of(rig.token(**claims)) is None


def test_a_token_signed_with_another_key_is_nobodys(rig: Rig) -> None:
    """A stranger's key vouches for nothing, whatever id the token gives it."""
    token = rig.token(key=ec.generate_private_key(ec.SECP256R1()))
    assert rig.reader.client_of(token) is None


def test_text_that_is_no_token_is_nobodys(rig: Rig) -> None:
    """Whatever it holds, and an unsigned token least of all."""
    head = base64.urlsafe_b64encode(b'{"alg":"none","kid":"k1"}').decode().rstrip("=")
    body = rig.token().split(".")[1]
    for text in ("", "a.b.c", f"{head}.{body}.", "x" * 100_000, "ü.ü.ü"):
        assert rig.reader.client_of(text) is None


def test_a_token_that_ends_beyond_all_numbers_is_not_good(rig: Rig) -> None:
    """Nothing but the answer that it is not known."""
    assert rig.reader.client_of(rig.token(exp=10**400)) is None


def test_a_remembered_token_ends_with_its_time(rig: Rig) -> None:
    """Remembering does not make it last."""
    token = rig.token()
    assert rig.reader.client_of(token) == "shop"
    rig.wall_s = 4_000_000_100.0
    assert rig.reader.client_of(token) is None


def test_a_key_that_is_taken_out_vouches_for_nothing(rig: Rig) -> None:
    """Neither for new tokens nor for remembered ones; the new key does."""
    token = rig.token()
    assert rig.reader.client_of(token) == "shop"
    other = ec.generate_private_key(ec.SECP256R1())
    rig.write({"k2": other})
    rig.monotonic_s = 10.0
    assert rig.reader.client_of(token) is None
    assert rig.reader.client_of(rig.token(kid="k2", key=other)) == "shop"


NO_ALGORITHM = '{"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "alg": "none"}]}'


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"keys": [1]}', '{"keys": []}', NO_ALGORITHM]
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, content: str | None) -> None:
    """The start is refused with the file's name."""
    path = tmp_path / "jwks.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError) as caught:
        TokenReader(
            path,
            issuer="x",
            audience="y",
            monotonic_s=lambda: 0.0,
            wall_s=lambda: 0.0,
            log=get_logger("test"),
        )
    (line,) = caught.value.problems
    assert f"mesh.access.jwks_file: {path}" in line


@pytest.mark.parametrize("kid", ["k1", None])
def test_two_keys_of_one_id_are_refused(rig: Rig, kid: str | None) -> None:
    """Nobody could say which of them vouches for a token."""
    row = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(rig.key.public_key()))
    named = {**row, "alg": "ES256"} if kid is None else {**row, "alg": "ES256", "kid": kid}
    rig.path.write_text(json.dumps({"keys": [named, named]}))
    with pytest.raises(SettingsError, match="two keys with one id"):
        rig.start()


@pytest.mark.parametrize("name", ["jwt", "cryptography"])
def test_a_package_that_is_missing_is_told(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The line says what to install; without cryptography the file was called no JWKS."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match=r"needs PyJWT and cryptography: pip install"):
        rig.start()
