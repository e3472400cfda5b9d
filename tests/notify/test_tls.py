"""A forge over TLS: only with a certificate that this machine trusts does it get the token."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from reconciler.errors import NotifyError
from reconciler.notify.exchange import Exchange
from reconciler.secrets import Secret
from tests.notify.forge import TOKEN, Forge


def test_the_token_goes_to_whom_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_certificate(tmp_path), tmp_path / "key.pem")
    with Forge("github").serving(tls=context) as forge:
        address = forge.api.replace("http:", "https:") + "/user"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with pytest.raises(NotifyError, match="FL9402") as caught:
            Exchange("forge", limit=30)("GET", address, headers, Secret(TOKEN))
        assert "certificate" in caught.value.cause.lower()
        assert not forge.requests
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        assert Exchange("forge", limit=30)("GET", address, headers, Secret(TOKEN)).status == 200


def _certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forge")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "authority.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "authority.pem"
