"""What authentication adds to a call: `python -m tests.bench.access` (about 20 s).

A bare method is called over one connection in turns with the same method behind the guard, by key,
token and certificate; CPU time of the process, which holds both sides, per call.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import jwt
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec

from services.common.access.access import AccessSettings, load_access
from services.common.access.guard import Guard
from services.common.access.keys import new_key, write_keys
from services.common.access.roles import Role
from services.common.access.tls import TlsSettings, read_certificates
from services.common.log import get_logger
from services.common.server import ServerSettings
from tests import certificates

SERVICE = "tiercel.router_inference.v1.RouterInferenceService"
CALLS = 400
ROUNDS = 15
LOG = get_logger("bench")


async def main() -> None:
    """Measures, and prints microseconds per call."""
    with tempfile.TemporaryDirectory() as name:
        sides = await _sides(Path(name))
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(ROUNDS):
            for side, call in sides.items():
                times[side].append(await _time_us(call))
    for plain, others in (
        ("plain", ("header alone", "key", "token")),
        ("tls", ("tls key", "certificate")),
    ):
        print(f"{plain:12} {statistics.median(times[plain]):7.1f} us of CPU a call, both sides")
        for side in others:
            added = [a - b for a, b in zip(times[side], times[plain], strict=True)]
            print(f"{side:12} {statistics.median(added):+7.1f} us")


async def _time_us(call: Any) -> float:
    await call()
    start_s = time.process_time()
    for _ in range(CALLS):
        await call()
    return (time.process_time() - start_s) / CALLS * 1e6


async def _sides(folder: Path) -> dict[str, Any]:
    keys, jwks = folder / "keys.toml", folder / "jwks.json"
    made = [new_key(f"client-{number}", [Role.DATA]) for number in range(100)]
    write_keys(keys, [key for key, _ in made])
    signer = ec.generate_private_key(ec.SECP256R1())
    row = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(signer.public_key()))
    jwks.write_text(json.dumps({"keys": [{**row, "kid": "k", "alg": "ES256"}]}))
    claims = {"sub": "shop", "iss": "i", "aud": "tiercel", "exp": 4_000_000_000}
    token = jwt.encode(claims, signer, "ES256", headers={"kid": "k"})
    settings = AccessSettings(
        keys_file=str(keys),
        jwks_file=str(jwks),
        jwt_issuer="i",
        certificate_roles={"operator": [Role.DATA]},
    )
    none = AccessSettings()
    key = _bearer(made[50][1])
    return {
        "plain": await _side(none, (), "", is_asked=False),
        "header alone": await _side(none, key, "", is_asked=False),
        "key": await _side(settings, key, "", is_asked=False),
        "token": await _side(settings, _bearer(token), "", is_asked=False),
        "tls": await _side(none, (), "operator", is_asked=False),
        "tls key": await _side(settings, key, "operator", is_asked=False),
        "certificate": await _side(settings, (), "operator", is_asked=True),
    }


def _bearer(text: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {text}"),)


async def _side(settings: AccessSettings, metadata: Any, holder: str, *, is_asked: bool) -> Any:
    access = load_access(
        "bench",
        ServerSettings(listen="127.0.0.1:0", metrics_listen="", client_certificates=is_asked),
        certificates.tls_settings("router-inference") if holder else TlsSettings(),
        settings,
        takes_keys=True,
        monotonic_s=time.monotonic,
        log=LOG,
    )

    async def answer(request: bytes, context: Any) -> bytes:
        return request

    handler: Any = grpc.unary_unary_rpc_method_handler(answer)
    guarded = Guard(access.authenticator)(f"{SERVICE}/Generate", handler)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Generate": guarded}),)
    )
    if access.tls is None:
        number = server.add_insecure_port("127.0.0.1:0")
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{number}")
    else:
        credentials = access.tls.server_credentials(with_client_certificates=is_asked)
        number = server.add_secure_port("127.0.0.1:0", credentials)
        held = read_certificates(certificates.tls_settings(holder), time.time())
        channel = grpc.aio.secure_channel(f"127.0.0.1:{number}", held.for_channel())
    await server.start()
    method: Any = channel.unary_unary(f"/{SERVICE}/Generate")

    async def call(server: Any = server) -> None:  # holds the server
        await method(b"x", metadata=metadata, timeout=10.0)

    return call


if __name__ == "__main__":
    uvloop.run(main())
