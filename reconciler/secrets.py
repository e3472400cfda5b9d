"""Secrets by reference: read when they are needed, so that a changed one counts without a restart, and never shown.

What is resolved is a `Secret`, which no log, repr, traceback or f-string turns into its value by accident; errors name the place.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from reconciler import decryption
from reconciler.errors import SecretError
from reconciler.redaction import learn
from reconciler.spec.secret_ref import SecretRef

MAX_BYTES = 64 * 1024
HIDDEN = "***"


class Secret:
    """A secret text. Only `reveal` gives it; everything else says `***`."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself, to be handed on at once."""
        return self._value

    def __repr__(self) -> str:
        return HIDDEN

    def __str__(self) -> str:
        return HIDDEN

    def __format__(self, _spec: str) -> str:
        return HIDDEN

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")


def resolve(ref: SecretRef, *, environ: Mapping[str, str]) -> Secret:
    """The secret that a reference names, without the newline at its end.

    From here on it is masked in everything that is written or shown.

    Raises SecretError: FL9601 for a variable that is not set, FL9602 for a file that cannot be read, FL9603 for a secret that is
    empty, too large or no text, FL9501 to FL9504 for one that cannot be decrypted.
    """
    if ref.env is not None:
        if ref.env not in environ:
            raise SecretError(
                "FL9601", f"The variable {ref.env} is not set.", cure="Set it for the reconciler, and start it again."
            )
        return _checked(environ[ref.env], ref)
    try:
        return _checked(_content(ref, environ).decode(), ref)
    except UnicodeDecodeError:
        # Not chained: the error of the decoder holds the bytes.
        raise _unusable(ref, "is not UTF-8") from None


def _content(ref: SecretRef, environ: Mapping[str, str]) -> bytes:
    if ref.sops is not None:
        return decryption.sops(ref.sops, ref.key or "", environ=environ, most=MAX_BYTES)
    if ref.age is not None:
        return decryption.age(ref.age, environ=environ, most=MAX_BYTES)
    return _read(ref.file or "")


def _read(path: str) -> bytes:
    cure = "Check its path, and that the reconciler's user may read it."
    try:
        # A pipe without a writer would hang for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise SecretError("FL9602", f"{path} is not a regular file.", cure=cure)
            return os.read(handle, MAX_BYTES + 1)
        finally:
            os.close(handle)
    except OSError as error:
        raise SecretError("FL9602", f"The file {path} cannot be read: {error.strerror}.", cure=cure) from error


def _checked(text: str, ref: SecretRef) -> Secret:
    value = text.removesuffix("\n").removesuffix("\r")
    if len(value) > MAX_BYTES:
        raise _unusable(ref, f"is larger than {MAX_BYTES:,} bytes")
    if not value.strip():
        raise _unusable(ref, "is empty")
    learn(value)
    return Secret(value)


def _unusable(ref: SecretRef, why: str) -> SecretError:
    return SecretError("FL9603", f"The secret of {ref} {why}.", cure="Put the secret there, and nothing else.")
