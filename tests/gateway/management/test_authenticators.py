"""What authenticators answer, whatever the bytes: it is true, or it is refused."""

import base64
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.management.authenticators import (
    NoHostName,
    Refused,
    RelyingParty,
    User,
    asserted,
    authentication,
    registered,
    registration,
    relying_party,
)
from tests.gateway.management.authenticator import ORIGIN, PARTY, Authenticator, raw, text

HERE = RelyingParty(PARTY, ORIGIN)
CHALLENGE = bytes(range(32))
NOW = User(bytes(16), "ada@example.com", "Ada")
CREATED = Authenticator().create(registration(HERE, NOW, challenge=CHALLENGE, known=[]))
_MADE = Authenticator(handle=bytes(16))
MADE = registered(
    HERE, _MADE.create(registration(HERE, NOW, challenge=CHALLENGE, known=[])), challenge=CHALLENGE
)
SHOWN = _MADE.get(authentication(HERE, challenge=CHALLENGE))


@pytest.mark.parametrize(
    ("site", "party"),
    [
        ("http://localhost:8081", RelyingParty("localhost", "http://localhost:8081")),
        ("https://gate.example.com", RelyingParty("gate.example.com", "https://gate.example.com")),
        (
            "https://Gate.example.com:443/",
            RelyingParty("gate.example.com", "https://gate.example.com"),
        ),
        ("https://g.example/tollgate", RelyingParty("g.example", "https://g.example")),
    ],
)
def test_the_relying_party_is_the_host_that_browsers_see(site: str, party: RelyingParty) -> None:
    assert relying_party(site) == party


@pytest.mark.parametrize("site", ["http://127.0.0.1:8081", "http://[::1]:8081", "nothing"])
def test_an_address_is_no_relying_party(site: str) -> None:
    with pytest.raises(NoHostName):
        relying_party(site)


def test_what_was_signed_is_true() -> None:
    used = asserted(HERE, SHOWN, challenge=CHALLENGE, public_key=MADE.public_key)
    assert used == (1, False, False)


def changed(credential: dict[str, Any], member: str, raw_bytes: bytes) -> dict[str, Any]:
    return {**credential, "response": {**credential["response"], member: text(raw_bytes)}}


def spoiled(whole: bytes, at: int, put: bytes) -> bytes:
    place = at % len(whole)
    return whole[:place] + put + whole[place + len(put) :]


@given(
    member=st.sampled_from(["clientDataJSON", "authenticatorData", "signature"]),
    at=st.integers(0, 500),
    put=st.binary(min_size=1, max_size=8),
)
def test_no_other_bytes_sign_in(member: str, at: int, put: bytes) -> None:
    whole = raw(SHOWN["response"][member])
    other = spoiled(whole, at, put)
    if other == whole:
        return
    with pytest.raises(Refused):
        asserted(
            HERE,
            changed(SHOWN, member, other),
            challenge=CHALLENGE,
            public_key=MADE.public_key,
        )


@given(at=st.integers(0, 500), put=st.binary(min_size=1, max_size=8))
def test_no_bytes_but_a_passkey_are_kept_or_fail_otherwise(at: int, put: bytes) -> None:
    other = spoiled(raw(CREATED["response"]["attestationObject"]), at, put)
    try:
        made = registered(HERE, changed(CREATED, "attestationObject", other), challenge=CHALLENGE)
    except Refused:
        return
    assert made.public_key, "nothing is signed here, so other bytes may be another passkey"


@given(data=st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    for member in ("attestationObject", "clientDataJSON"):
        with pytest.raises(Refused):
            registered(HERE, changed(CREATED, member, data), challenge=CHALLENGE)


@pytest.mark.parametrize("format_", ["tpm", "android-safetynet", "fido-u2f", "?", 1, None])
def test_attestations_of_vendors_are_refused(format_: Any) -> None:
    whole = cbor2.loads(base64.urlsafe_b64decode(CREATED["response"]["attestationObject"] + "=="))
    other = cbor2.dumps({**whole, "fmt": format_})
    with pytest.raises(Refused, match="attestation of the format"):
        registered(HERE, changed(CREATED, "attestationObject", other), challenge=CHALLENGE)
