"""Keys of nodes: elliptic-curve key pairs as Flower's node authentication takes them.

A private key is written for its owner only and never overwritten: a node that loses its key is a new node.
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from reconciler.errors import TrainingError

CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"
KeyPair = tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]


def generate(private_file: Path) -> ec.EllipticCurvePublicKey:
    """Make a key pair: `private_file` (mode 0600) and the public key beside it as `.pub`. Raises TrainingError."""
    # Every request is signed and verified: this curve takes an eighth of the time of the next one.
    key = ec.generate_private_key(ec.SECP256R1())
    openssh = serialization.PrivateFormat.OpenSSH  # Flower's own SuperNode reads no other
    content = key.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption())
    try:
        private_file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(private_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise TrainingError(
            "FL5808", f"The key file {private_file} exists already.", cure="Name another file, or remove that one."
        ) from error
    except OSError as error:
        raise TrainingError(
            "FL5808", f"The key file cannot be written: {error.strerror}.", cure="Name a folder that you may write to."
        ) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    public_file(private_file).write_bytes(public_bytes(key.public_key()))
    return key.public_key()


def public_file(private_file: Path) -> Path:
    """Where `generate` writes the public key."""
    return private_file.with_name(f"{private_file.name}.pub")


def read(private_file: Path) -> KeyPair:
    """The key pair of a private key file. Raises TrainingError if it cannot be used, or others may read it."""
    try:
        if private_file.stat().st_mode & 0o077:
            raise TrainingError("FL5808", f"Others may read the key file {private_file}.", cure=f"Run `chmod 600 {private_file}`.")
        content = private_file.read_bytes()
        load = serialization.load_ssh_private_key if content.startswith(_OPENSSH) else serialization.load_pem_private_key
        key = load(content, password=None)
    except OSError as error:
        raise TrainingError(
            "FL5808", f"The key file cannot be read: {error.strerror}.", cure="Make a key with `flops node keygen`."
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrainingError(
            "FL5808", f"{private_file} is not a private key in PEM form.", cure="Make a key with `flops node keygen`."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, CURVES):
        raise TrainingError(
            "FL5808", f"{private_file} is not a NIST elliptic-curve key.", cure="Make a key with `flops node keygen`."
        )
    return key, key.public_key()


def public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key in the one form in which Flower compares keys (PEM, SubjectPublicKeyInfo)."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(public: bytes) -> str:
    """What people compare: SHA-256 of the key, as OpenSSH writes it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(public).digest()).decode().rstrip("=")
