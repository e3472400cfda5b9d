"""Signatures in cosign's form, checked against skopeo: it opens our keys, and each verifies what the other signed."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path

import nacl.secret
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from reconciler.errors import ImageError
from reconciler.images.model import Descriptor
from reconciler.images.push import push
from reconciler.images.reference import Reference
from reconciler.images.registry import Registry
from reconciler.images.signing import SIGNATURE, Signer, signature_tag, verify, verify_payload
from tests.engine import RunningRegistry
from tests.images.imagekit import PATIENT, layout_at, make_image

PASSWORD = b"correct horse"


def cosign_key(password: bytes = PASSWORD, **changed: object) -> bytes:
    """A key file as `cosign generate-key-pair` writes it."""
    key = ec.generate_private_key(ec.SECP256R1())
    der = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    salt, nonce = os.urandom(32), os.urandom(24)
    box = nacl.secret.SecretBox(Scrypt(salt=salt, length=32, n=32768, r=8, p=1).derive(password))
    encode = lambda data: base64.b64encode(data).decode()  # noqa: E731
    content = {
        "kdf": {"name": "scrypt", "params": {"N": 32768, "r": 8, "p": 1}, "salt": encode(salt)},
        "cipher": {"name": "nacl/secretbox", "nonce": encode(nonce)},
        "ciphertext": encode(box.encrypt(der, nonce).ciphertext),
    } | changed
    body = encode(json.dumps(content).encode())
    lines = "\n".join(body[start : start + 64] for start in range(0, len(body), 64))
    return f"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n{lines}\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n".encode()


def plain_key(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | None = None, password: bytes = b"") -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    made = key or ec.generate_private_key(ec.SECP256R1())
    return made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def test_sign_and_verify(tmp_path: Path) -> None:
    layout = layout_at(tmp_path)
    image, other = make_image(layout, content=b"one"), make_image(layout, content=b"other")
    signer, stranger = Signer(cosign_key(), PASSWORD), Signer(plain_key())
    made = signer.sign(layout, image, "registry.example.invalid/acme/digits")
    assert made.artifact_type == SIGNATURE
    # The same again changes nothing.
    assert signer.sign(layout, image, "registry.example.invalid/acme/digits").digest == made.digest
    found = verify(layout, image, signer.public_pem, "registry.example.invalid/acme/digits")
    assert (found.digest, found.manifest) == (image.digest, made.digest)
    for image_, key, repository, reason in (
        (image, stranger.public_pem, "", "made with another key"),
        (image, signer.public_pem, "registry.example.invalid/rival/digits", "it is one for registry.example.invalid/acme"),
        (other, signer.public_pem, "", "there is none"),
    ):
        with pytest.raises(ImageError, match=reason) as failure:
            verify(layout, image_, key, repository)
        assert failure.value.code == "FL6162"


def test_a_signature_that_was_moved_to_another_image(tmp_path: Path) -> None:
    layout = layout_at(tmp_path)
    image = make_image(layout)
    signer = Signer(plain_key())
    layer = Descriptor.from_dict(layout.read_json(signer.sign(layout, image, "h.invalid/a").digest)["layers"][0])
    signature = layer.annotations["dev.cosignproject.cosign/signature"]
    payload = layout.read(layer.digest)
    assert verify_payload(payload, signature, signer.public_pem, image.digest) == {"docker-reference": "h.invalid/a"}
    assert verify_payload(payload, signature, signer.public_pem, "sha256:" + "0" * 64) == "it is one of another image"
    assert verify_payload(payload + b" ", signature, signer.public_pem, image.digest) == "it was made with another key"
    assert verify_payload(payload, "???", signer.public_pem, image.digest) == "it is malformed"


def test_others_find_it_by_its_tag_and_verify_it(tmp_path: Path, registry: RunningRegistry) -> None:
    layout = layout_at(tmp_path)
    image = make_image(layout)
    target = Reference.parse(f"{registry.host}/acme/digits:1")
    signer = Signer(cosign_key(), PASSWORD)
    signer.sign(layout, image, f"{registry.host}/acme/digits")
    with Registry(registry.host, patience=PATIENT) as client:
        push(layout, image, target, registry=client)
        data, _ = client.manifest(target.at(signature_tag(image.digest)))
        layer = Descriptor.from_dict(json.loads(data)["layers"][0])
        assert layer.media_type == "application/vnd.dev.cosign.simplesigning.v1+json"
        copy = layout_at(tmp_path / "copy")
        with copy.writer() as writer:
            client.fetch("acme/digits", layer, writer)
    assert json.loads(copy.read(layer.digest))["critical"] == {
        "identity": {"docker-reference": f"{registry.host}/acme/digits"},
        "image": {"docker-manifest-digest": image.digest},
        "type": "cosign container image signature",
    }
    # OpenSSL knows nothing of us: what it verifies is an ordinary ECDSA signature over the payload.
    (tmp_path / "cosign.pub").write_bytes(signer.public_pem)
    (tmp_path / "signature").write_bytes(base64.b64decode(layer.annotations["dev.cosignproject.cosign/signature"]))
    said = subprocess.run(
        ["openssl", "dgst", "-sha256", "-verify", str(tmp_path / "cosign.pub"), "-signature", str(tmp_path / "signature"),
         str(copy.blob_path(layer.digest))], check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "Verified OK" in said.stdout


@pytest.mark.parametrize(
    ("pem", "password", "code"),
    [
        (cosign_key(), b"hunter2", "FL6161"),
        (cosign_key(), b"", "FL6161"),
        (plain_key(password=b"x"), b"", "FL6161"),
        (plain_key(password=b"x"), b"hunter2", "FL6161"),
        (plain_key(), b"needless", "FL6160"),
        (b"nothing", b"", "FL6160"),
        (cosign_key(ciphertext=7), PASSWORD, "FL6160"),
        (cosign_key(kdf={"name": "scrypt", "params": {"N": 1 << 30, "r": 8, "p": 1}, "salt": ""}), PASSWORD, "FL6160"),
        (plain_key(ec.generate_private_key(ec.SECP384R1())), b"", "FL6160"),
        (plain_key(ed25519.Ed25519PrivateKey.generate()), b"", "FL6160"),
    ],
)  # fmt: skip
def test_keys_that_are_none(pem: bytes, password: bytes, code: str) -> None:
    with pytest.raises(ImageError) as failure:
        Signer(pem, password)
    assert failure.value.code == code
    assert not password or password.decode() not in str(failure.value)


def test_a_key_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="FL6160"):
        Signer.from_file(tmp_path / "none.key")
    assert Signer(plain_key(password=b"x"), b"x").public_pem.startswith(b"-----BEGIN PUBLIC KEY")
