"""Certificates of a SuperLink that the reconciler runs itself: an authority of its own for each federation.

The authority's certificate is what node owners get (`--root-certificates`); its key stays in the state directory. The server's
certificate is renewed by itself when it is near its end or when the names change; the authority stays, so no node has to do
anything.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY, AUTHORITY_KEY, SERVER, SERVER_KEY = "ca.pem", "ca.key", "server.pem", "server.key"
_AUTHORITY_LIFE = datetime.timedelta(days=3650)
_LIFE = datetime.timedelta(days=365)
_RENEW = datetime.timedelta(days=30)


def ensure(folder: Path, hosts: Sequence[str], now: datetime.datetime) -> Path:
    """Authority and server certificate for these host names or addresses; returns the authority's certificate file."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority, key = _authority(folder, now)
    names = x509.SubjectAlternativeName([_name(host) for host in hosts])
    if not _good(folder, names, authority, now):
        _issue(folder, names, authority, key, now)
    return folder / AUTHORITY


def _authority(folder: Path, now: datetime.datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    if (folder / AUTHORITY).is_file():
        key = serialization.load_pem_private_key((folder / AUTHORITY_KEY).read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101 - we wrote it
        return x509.load_pem_x509_certificate((folder / AUTHORITY).read_bytes()), key
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"flops federation {folder.name}")])
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(name, name, key.public_key(), now, _AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_key(folder / AUTHORITY_KEY, key)
    _write(folder / AUTHORITY, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return certificate, key


def _issue(
    folder: Path,
    names: x509.SubjectAlternativeName,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "flops superlink")])
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _builder(subject, authority.subject, key.public_key(), now, _LIFE)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    _write_key(folder / SERVER_KEY, key)
    _write(folder / SERVER, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime.datetime, life: datetime.timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of nodes may be behind
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _good(folder: Path, names: x509.SubjectAlternativeName, authority: x509.Certificate, now: datetime.datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate((folder / SERVER).read_bytes())
        if not (folder / SERVER_KEY).is_file():
            return False
        certificate.verify_directly_issued_by(authority)
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:
        return False  # whatever is wrong with it, a new one is right
    return found == names and certificate.not_valid_after_utc - now > _RENEW


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )  # fmt: skip
    _write(path, content, 0o600)


def _write(path: Path, content: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)
