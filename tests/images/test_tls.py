"""HTTPS to a real registry: only with a certificate that this machine trusts, by its bundle or by Docker's folder."""

from __future__ import annotations

import ipaddress
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from reconciler.errors import ImageError
from reconciler.images import transport
from reconciler.images.push import push
from reconciler.images.reference import Reference
from reconciler.images.registry import Registry
from tests.engine import RunningRegistry
from tests.images.imagekit import PATIENT, layout_at, make_image


def own_address() -> str:
    """An address of this machine that is not loopback; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


@pytest.fixture
def secure(tmp_path: Path) -> RunningRegistry:
    """A registry that speaks HTTPS on an address that is not loopback; its authority is in `authority.pem`."""
    address = own_address()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registry")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    (tmp_path / "authority.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return RunningRegistry(tmp_path / "registry", address=address, tls=(tmp_path / "authority.pem", tmp_path / "key.pem"))


def test_only_with_a_certificate_that_is_trusted(tmp_path: Path, secure: RunningRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_at(tmp_path)
    index = make_image(layout)
    target = Reference.parse(f"{secure.host}/acme/digits:1")
    assert target.url.startswith("https://")

    def publish() -> str:
        with Registry(secure.host, patience=PATIENT) as client:
            return push(layout, index, target, registry=client).digest

    try:
        with pytest.raises(ImageError, match="is not trusted") as failure:
            publish()
        assert (failure.value.code, failure.value.transient) == ("FL6144", False)
        with monkeypatch.context() as bundle:
            bundle.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
            assert publish() == index.digest
        folder = tmp_path / "certs.d" / secure.host
        folder.mkdir(parents=True)
        (folder / "ca.crt").write_bytes((tmp_path / "authority.pem").read_bytes())
        monkeypatch.setattr(transport, "_REGISTRY_CERTIFICATES", tmp_path / "certs.d")
        assert publish() == index.digest
    finally:
        secure.stop()
