"""Self-made certificates for a mesh: a root of its own, and one certificate per service.

For one host, and to try things out; a fleet has a certificate manager. Files are named as
cert-manager names them, so that both can be mounted alike.
"""

from __future__ import annotations

import datetime
import ipaddress
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from services.common.files import open_folder, write_whole
from services.local.errors import CommandError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

NAMES = (
    "router-inference", "load-monitor", "trainer", "openai-door", "triton", "redis", "operator",
)  # fmt: skip
"""Whose certificates are made; the name is in the certificate, and says what its holder may do."""
ROOT_NAME = "root"
NAMESPACE = "tiercel"
_ROOT_DAYS = 3_650
PODS = 16
"""Pods of Triton that have a name in its certificate, as in `deploy/kubernetes`."""
_CLOCK_SLACK = datetime.timedelta(hours=1)


def make_certificates(
    folder: pathlib.Path,
    *,
    names: Sequence[str] = NAMES,
    days: int = 365,
    router_id: str = "",
) -> list[pathlib.Path]:
    """Makes or renews certificates; a root that is there is used again.

    The folder is closed to other users of this machine. The keys in it are readable for whatever
    user a container has, whatever the `umask`: a container sees the folder of one name only.

    Args:
        folder: Gets `root/` and one folder per name with `ca.crt`, `tls.crt` and `tls.key`.
        names: Whose certificates; each is the first DNS name in its certificate.
        days: How long they hold.
        router_id: Makes the router's certificate that of one router, which can report as no other.

    Returns:
        The folders of the names.

    Raises:
        CommandError: A file cannot be written or read, or `cryptography` is not installed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        root, root_key = _root(folder / ROOT_NAME)
        made = []
        for name in names:
            certificate, key = _signed(name, root, root_key, days, router_id)
            made.append(folder / name)
            _write(folder / name / "ca.crt", _pem(root))
            _write(folder / name / "tls.key", _key_pem(key))
            _write(folder / name / "tls.crt", _pem(certificate))
    except ImportError:
        raise CommandError(
            "certificates are made by the package cryptography: pip install 'tiercel[security]'"
        ) from None
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror or error}") from None
    except ValueError as error:
        raise CommandError(f"{folder / ROOT_NAME}: cannot be used: {error}") from None
    return made


def _root(folder: pathlib.Path) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if (folder / "tls.key").exists():
        found = serialization.load_pem_private_key((folder / "tls.key").read_bytes(), None)
        if not isinstance(found, ec.EllipticCurvePrivateKey):
            raise ValueError("the key is none of an elliptic curve")
        return x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes()), found
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("tiercel self-made root")
    builder = (
        _builder(name, name, key, _ROOT_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    root = _sign(builder, key)
    _write(folder / "tls.key", _key_pem(key), mode=0o600)
    _write(folder / "tls.crt", _pem(root))
    return root, key


def _signed(
    name: str,
    root: x509.Certificate,
    root_key: EllipticCurvePrivateKey,
    days: int,
    router_id: str,
) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = ec.generate_private_key(ec.SECP256R1())
    names = [name, f"{name}.{NAMESPACE}", f"{name}.{NAMESPACE}.svc", "localhost"]
    if name == "triton":
        # gRPC takes no wildcard of one label, so pods have a name each.
        names += [f"{name}-{index}.{name}" for index in range(PODS)]
    if name == "router-inference" and router_id:
        names.append(f"{router_id}.{name}")
    loopback = [ipaddress.ip_address(each) for each in ("127.0.0.1", "::1")]
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _builder(_name(name), root.subject, key, days)
        .add_extension(
            x509.SubjectAlternativeName(
                [*(x509.DNSName(each) for each in names), *map(x509.IPAddress, loopback)]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()),
            critical=False,
        )
    )
    return _sign(builder, root_key), key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _sign(builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> x509.Certificate:
    from cryptography.hazmat.primitives import hashes

    return builder.sign(key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: pathlib.Path, content: bytes, *, mode: int = 0o644) -> None:
    """Writes a file; a service that reads it meanwhile sees the old one or the new one."""
    open_folder(path.parent)
    write_whole(path, content, mode=mode)
