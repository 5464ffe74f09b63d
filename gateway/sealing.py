"""Secrets that must be read again, sealed for the database: AES-256-GCM, bound to their owner."""

from collections.abc import Callable
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from providers.adapter import Secret

_NONCE_BYTES = 12
_FORM = b"\1"  # of what is sealed; another key or cipher will be another
_INFO = b"tollgate sealed secrets 1"


class SealBroken(Exception):
    """It was sealed under another key, for another owner, or was changed."""


class Sealer(NamedTuple):
    """Seals and opens. `owner` is what a secret belongs to: it opens for nobody else."""

    seal: Callable[[str, str], bytes]  # the secret and its owner
    open: Callable[[bytes, str], str]  # raises `SealBroken`


def sealer(pepper: Secret, random_bytes: Callable[[int], bytes]) -> Sealer:
    """The sealer of an installation: its key is derived from the pepper, which no store has."""
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=_INFO)
    cipher = AESGCM(derived.derive(pepper.reveal().encode()))

    def seal(secret: str, owner: str) -> bytes:
        nonce = random_bytes(_NONCE_BYTES)
        return _FORM + nonce + cipher.encrypt(nonce, secret.encode(), owner.encode())

    def unseal(sealed: bytes, owner: str) -> str:
        form, nonce, rest = sealed[:1], sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        if form != _FORM:
            raise SealBroken("it is of no form that this release knows")
        try:
            return cipher.decrypt(nonce, rest, owner.encode()).decode()
        except InvalidTag as error:
            raise SealBroken("another pepper, another owner, or changed since") from error

    return Sealer(seal, unseal)
