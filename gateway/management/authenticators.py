"""What authenticators are asked, and whether what they answer is true (WebAuthn).

The checks are the library's; here is what it is told to expect, and its failures in our words. The
relying party is the host of `management.public_url`, and no page of another origin can ask for it.
Every passkey is asked to verify its user, by a finger, a face or a PIN, so that it is two factors.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
from webauthn import (
    generate_authentication_options,
    generate_registration_options,
    options_to_json,
    verify_authentication_response,
    verify_registration_response,
)
from webauthn.helpers import base64url_to_bytes, parse_attestation_object
from webauthn.helpers.exceptions import WebAuthnException
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    CredentialDeviceType,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

_NAME = "Tollgate"
_TIMEOUT_MS = 5 * 60 * 1000
_PORTS = {"http": 80, "https": 443}
# None is asked for, and an authenticator may sign one itself all the same. The formats of vendors
# would prove a make that nothing here depends on.
_ATTESTATIONS = ("none", "packed")
# What the library's parsers let through of bytes that are nothing they know.
_UNREADABLE = (WebAuthnException, ValueError, KeyError, IndexError, TypeError, AttributeError)


class Refused(Exception):
    """The answer is not true, or not to what was asked; the message says why, for a log."""


class NoHostName(Exception):
    """Passkeys belong to a host's name, and there is none."""


class RelyingParty(NamedTuple):
    """Whom passkeys are for."""

    id: str  # a host name
    origin: str  # of the pages that may ask


class Registered(NamedTuple):
    """A passkey that was just made."""

    credential_id: bytes
    public_key: bytes
    sign_count: int
    can_be_backed_up: bool
    is_backed_up: bool


class Asserted(NamedTuple):
    """A passkey that was just used."""

    sign_count: int
    can_be_backed_up: bool
    is_backed_up: bool


class User(NamedTuple):
    """Whose passkey it is to be, as an authenticator shows it."""

    handle: bytes
    email: str
    name: str


def relying_party(site: str) -> RelyingParty:
    """The relying party of this URL; `NoHostName` if its host is an address."""
    parts = urlsplit(site)
    host = parts.hostname or ""
    try:
        ip_address(host)
    except ValueError:
        pass
    else:
        raise NoHostName(host)
    if not host:
        raise NoHostName(site)
    port = "" if parts.port in {None, _PORTS.get(parts.scheme)} else f":{parts.port}"
    return RelyingParty(host, f"{parts.scheme}://{host}{port}")


def registration(
    party: RelyingParty, user: User, *, challenge: bytes, known: Sequence[bytes]
) -> dict[str, Any]:
    """What `navigator.credentials.create` is given, as JSON; `known` must not be made again."""
    options = generate_registration_options(
        rp_id=party.id,
        rp_name=_NAME,
        user_id=user.handle,
        user_name=user.email,
        user_display_name=user.name or user.email,
        challenge=challenge,
        timeout=_TIMEOUT_MS,
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.REQUIRED,
            user_verification=UserVerificationRequirement.REQUIRED,
        ),
        exclude_credentials=[PublicKeyCredentialDescriptor(id=each) for each in known],
    )
    return _json(options_to_json(options))


def authentication(party: RelyingParty, *, challenge: bytes) -> dict[str, Any]:
    """What `navigator.credentials.get` is given: the authenticator says who it is."""
    options = generate_authentication_options(
        rp_id=party.id,
        challenge=challenge,
        timeout=_TIMEOUT_MS,
        user_verification=UserVerificationRequirement.REQUIRED,
    )
    return _json(options_to_json(options))


def registered(party: RelyingParty, credential: dict[str, Any], *, challenge: bytes) -> Registered:
    """The passkey that was made; `Refused`."""
    try:
        attested = base64url_to_bytes(credential["response"]["attestationObject"])
        attestation = parse_attestation_object(attested).fmt
        if attestation not in _ATTESTATIONS:
            raise Refused(f"attestation of the format {str(attestation)[:40]!r}")
        found = verify_registration_response(
            credential=credential,
            expected_challenge=challenge,
            expected_rp_id=party.id,
            expected_origin=party.origin,
            require_user_verification=True,
        )
    except _UNREADABLE as error:
        raise Refused(f"{type(error).__name__}: {error}") from error
    return Registered(
        found.credential_id,
        found.credential_public_key,
        found.sign_count,
        found.credential_device_type is CredentialDeviceType.MULTI_DEVICE,
        found.credential_backed_up,
    )


def asserted(
    party: RelyingParty, credential: dict[str, Any], *, challenge: bytes, public_key: bytes
) -> Asserted:
    """How the passkey with this key was used; `Refused`. Its counter is the caller's to compare."""
    try:
        found = verify_authentication_response(
            credential=credential,
            expected_challenge=challenge,
            expected_rp_id=party.id,
            expected_origin=party.origin,
            credential_public_key=public_key,
            credential_current_sign_count=0,
            require_user_verification=True,
        )
    except _UNREADABLE as error:
        raise Refused(f"{type(error).__name__}: {error}") from error
    return Asserted(
        found.new_sign_count,
        found.credential_device_type is CredentialDeviceType.MULTI_DEVICE,
        found.credential_backed_up,
    )


def _json(text: str) -> dict[str, Any]:
    return dict(msgspec.json.decode(text))
