"""Signatures of images in cosign's form: simple signing payloads, ECDSA P-256 over SHA-256, keys in cosign's PEM files.

The same image and key give the same signature (RFC 6979), so signing again changes nothing. A signature says which digest was
signed; nothing that it says besides is trusted.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nacl.exceptions
import nacl.secret
import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from reconciler.errors import ImageError
from reconciler.images.layout import Layout
from reconciler.images.model import CONFIG, MANIFEST, Descriptor, checked_digest

SIGNATURE: Final = "application/vnd.dev.cosign.artifact.sig.v1+json"
PAYLOAD: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
_ANNOTATION: Final = "dev.cosignproject.cosign/signature"
_TYPE: Final = "cosign container image signature"
_ENCRYPTED: Final = re.compile(
    rb"-----BEGIN ENCRYPTED (SIGSTORE|COSIGN) PRIVATE KEY-----\s+(?P<body>[A-Za-z0-9+/=\s]+)-----END ENCRYPTED \1 PRIVATE KEY-----"
)
_HARDEST: Final = 1 << 20
"""scrypt's N at most: a key file must not take all the memory."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature found for an image: the digest and the repository that it speaks of."""

    digest: str
    repository: str
    manifest: str


class Signer:
    """A private key, from cosign's encrypted PEM or a plain one."""

    def __init__(self, pem: bytes, password: bytes = b"") -> None:
        self._key = _private_key(pem, password)

    @classmethod
    def from_file(cls, path: Path, password: bytes = b"") -> Signer:
        """Read a key. Raises ImageError FL6160, FL6161."""
        try:
            return cls(path.read_bytes(), password)
        except OSError as error:
            raise _unusable(f"{path.name} cannot be read: {error.strerror}") from error

    @property
    def public_pem(self) -> bytes:
        """The public key, as `cosign.pub` has it."""
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )  # fmt: skip

    def sign(self, layout: Layout, image: Descriptor, repository: str) -> Descriptor:
        """Sign an image for a repository (`host/name`, without a tag) and attach the signature; the signature's manifest."""
        payload = orjson.dumps(
            {
                "critical": {
                    "identity": {"docker-reference": repository},
                    "image": {"docker-manifest-digest": image.digest},
                    "type": _TYPE,
                },
                "optional": None,
            }
        )
        signed = self._key.sign(payload, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        annotations = {_ANNOTATION: base64.b64encode(signed).decode()}
        layer = layout.add_bytes(payload, PAYLOAD, annotations=annotations)
        config = layout.add_json(
            {"architecture": "", "os": "", "config": {}, "rootfs": {"type": "layers", "diff_ids": [layer.digest]}}, CONFIG
        )  # fmt: skip
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": SIGNATURE,
            "config": config.to_dict(),
            "layers": [layer.to_dict()],
            "subject": Descriptor(image.media_type, image.digest, image.size).to_dict(),
        }
        return layout.add_referrer(orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS), MANIFEST)


def verify(layout: Layout, image: Descriptor, public_pem: bytes, repository: str = "") -> Signature:
    """The first attached signature that holds for an image, a key and, where given, a repository. Raises ImageError FL6162."""
    reasons: list[str] = []
    for attached in layout.referrers(image.digest):
        if attached.artifact_type != SIGNATURE:
            continue
        for layer in layout.read_json(attached.digest).get("layers") or []:
            blob = Descriptor.from_dict(layer)
            found = verify_payload(
                layout.read(blob.digest), blob.annotations.get(_ANNOTATION, ""), public_pem, image.digest, repository
            )  # fmt: skip
            if isinstance(found, str):
                reasons.append(found)
            else:
                return Signature(image.digest, found["docker-reference"], attached.digest)
    raise ImageError(
        "FL6162",
        f"No signature holds for {image.digest[:19]}…: {reasons[0] if reasons else 'there is none'}.",
        cure="Sign it with the right key, or correct the public key.",
    )


def verify_payload(payload: bytes, signature: str, public_pem: bytes, digest: str, repository: str = "") -> Mapping[str, str] | str:
    """The identity that a payload names when its signature holds for the digest, else the reason why not."""
    try:
        key = serialization.load_pem_public_key(public_pem)
    except ValueError as error:
        raise _unusable("the public key is not PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _unusable("the public key is not one for ECDSA")
    try:
        key.verify(base64.b64decode(signature, validate=True), payload, ec.ECDSA(hashes.SHA256()))
        content: Any = orjson.loads(payload)
        critical = content["critical"]
        identity, signed = dict(critical["identity"]), str(critical["image"]["docker-manifest-digest"])
    except InvalidSignature:
        return "it was made with another key"
    except (binascii.Error, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return "it is malformed"
    if critical.get("type") not in {_TYPE, "atomic container signature"}:
        return "it is no signature of an image"
    if signed != digest:
        return "it is one of another image"
    found = str(identity.get("docker-reference", ""))
    # Some tools write the tag too.
    if repository and not re.fullmatch(re.escape(repository) + r"(:[^/@]+)?(@.+)?", found):
        return f"it is one for {found[:80]}"
    return {"docker-reference": found}


def signature_tag(digest: str) -> str:
    """The tag under which cosign and others look for an image's signatures."""
    return checked_digest(digest).replace(":", "-") + ".sig"


def _private_key(pem: bytes, password: bytes) -> ec.EllipticCurvePrivateKey:
    match = _ENCRYPTED.search(pem)
    try:
        if match:
            loaded = serialization.load_der_private_key(_decrypt(match["body"], password), None)
        else:
            loaded = serialization.load_pem_private_key(pem, password or None)
    except TypeError as error:
        raise _password() if "encrypted" in str(error) and not password else _unusable("it is not encrypted") from error
    except ValueError as error:
        raise (_password() if password and not match else _unusable("it is not a PEM file of a private key")) from error
    if not isinstance(loaded, ec.EllipticCurvePrivateKey) or not isinstance(loaded.curve, ec.SECP256R1):
        raise _unusable("it is not one for ECDSA on P-256, as cosign makes them")
    return loaded


def _decrypt(body: bytes, password: bytes) -> bytes:
    """Cosign's box: scrypt makes the key, XSalsa20-Poly1305 holds PKCS#8."""
    try:
        content = orjson.loads(base64.b64decode(body))
        kdf, cipher = content["kdf"], content["cipher"]
        cost = {name: int(kdf["params"][name]) for name in ("N", "r", "p")}
        if kdf["name"] != "scrypt" or cipher["name"] != "nacl/secretbox" or cost["N"] * cost["r"] > _HARDEST * 8 or cost["p"] > 16:
            raise _unusable("it is encrypted in an unknown way")
        salt, nonce = base64.b64decode(kdf["salt"]), base64.b64decode(cipher["nonce"])
        key = Scrypt(salt=salt, length=32, n=cost["N"], r=cost["r"], p=cost["p"]).derive(password)
        return nacl.secret.SecretBox(key).decrypt(base64.b64decode(content["ciphertext"]), nonce)
    except nacl.exceptions.CryptoError as error:
        raise _password() from error
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise _unusable("its encrypted content is damaged") from error


def _password() -> ImageError:
    return ImageError("FL6161", "The password of the signing key is wrong or missing.", cure="Set COSIGN_PASSWORD.")


def _unusable(why: str) -> ImageError:
    return ImageError(
        "FL6160", f"The signing key cannot be used: {why}.", cure="Give a key as `cosign generate-key-pair` makes it."
    )
