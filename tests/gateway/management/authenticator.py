"""An authenticator and the browser before it: makes passkeys (ES256, attestation none) and signs.

What it does wrong, a test says: another origin, another relying party, no verified user.
"""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from tests.gateway.management.office import Browser, Got

ORIGIN, PARTY = "http://localhost:8081", "localhost"
_PRESENT, _VERIFIED, _ELIGIBLE, _BACKED_UP, _ATTESTED = 0x01, 0x04, 0x08, 0x10, 0x40


def text(raw: bytes) -> str:
    """As base64url."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def raw(said: str) -> bytes:
    return base64.urlsafe_b64decode(said + "=" * (-len(said) % 4))


@dataclass
class Authenticator:
    """One passkey at most."""

    origin: str = ORIGIN
    party: str | None = None  # None: the one it is asked for
    is_verifying: bool = True
    count: int | None = 0  # None: it does not count
    is_synced: bool = False
    handle: bytes = b""
    key: ec.EllipticCurvePrivateKey = field(init=False)

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.id = hashlib.sha256(text(self._public()).encode()).digest()

    def create(self, options: dict[str, Any]) -> dict[str, Any]:
        """`navigator.credentials.create(options).toJSON()`."""
        self.handle = raw(options["user"]["id"])
        made = len(self.id).to_bytes(2, "big") + self.id + self._public()
        data = self._data(options["rp"]["id"], _ATTESTED) + bytes(16) + made
        attestation = cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})
        client = self._client("webauthn.create", options)
        response = {"clientDataJSON": text(client), "attestationObject": text(attestation)}
        return self._credential({**response, "transports": ["internal"]})

    def get(self, options: dict[str, Any]) -> dict[str, Any]:
        """`navigator.credentials.get(options).toJSON()`."""
        if self.count is not None:
            self.count += 1
        data = self._data(options["rpId"], 0)
        client = self._client("webauthn.get", options)
        signature = self.key.sign(data + hashlib.sha256(client).digest(), ec.ECDSA(SHA256()))
        said = {"clientDataJSON": client, "authenticatorData": data, "signature": signature}
        return self._credential(
            {name: text(each) for name, each in {**said, "userHandle": self.handle}.items()}
        )

    def _credential(self, response: dict[str, Any]) -> dict[str, Any]:
        extensions: dict[str, Any] = {}
        return {
            "id": text(self.id),
            "rawId": text(self.id),
            "type": "public-key",
            "response": response,
            "clientExtensionResults": extensions,
        }

    def _client(self, kind: str, options: dict[str, Any]) -> bytes:
        said = {"type": kind, "challenge": options["challenge"], "origin": self.origin}
        return json.dumps({**said, "crossOrigin": False}).encode()

    def _data(self, party: str, flags: int) -> bytes:
        flags |= _PRESENT | (_VERIFIED if self.is_verifying else 0)
        flags |= (_ELIGIBLE | _BACKED_UP) if self.is_synced else 0
        wanted = hashlib.sha256((self.party or party).encode()).digest()
        return wanted + bytes([flags]) + (self.count or 0).to_bytes(4, "big")

    def _public(self) -> bytes:
        point = self.key.public_key().public_numbers()
        key = {1: 2, 3: -7, -1: 1, -2: point.x.to_bytes(32, "big"), -3: point.y.to_bytes(32, "big")}
        return cbor2.dumps(key)


async def challenged(browser: Browser) -> dict[str, Any]:
    """What somebody who is signed in is to make a passkey by."""
    got = await browser.post("/me/passkeys/challenges")
    assert got.status == 201, got
    return dict(got.body["public_key"])


async def adds(browser: Browser, authenticator: Authenticator, name: str = "laptop") -> Got:
    """Make a passkey and keep it."""
    credential = authenticator.create(await challenged(browser))
    return await browser.post("/me/passkeys", {"name": name, "credential": credential})


async def signs_in(browser: Browser, authenticator: Authenticator, **changed: Any) -> Got:
    """Sign in with it; `changed` stands in place of what the authenticator says."""
    got = await browser.post("/session/passkey/challenges")
    assert got.status == 201, got
    credential = {**authenticator.get(got.body["public_key"]), **changed}
    got = await browser.post("/session/passkey", {"credential": credential})
    if got.status == 201:
        browser.headers["X-CSRF-Token"] = got.body["csrf_token"]
    return got
