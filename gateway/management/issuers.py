"""The issuers of OpenID Connect: where people are sent, and whether what comes back is true.

Authorization code with PKCE. What an issuer says of itself and its keys are kept for an hour; an
unknown key has them read again, once a minute at most, so that issuers may change theirs.
"""

import asyncio
import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote_plus, urlencode

import msgspec
from authlib.oauth2.rfc7636 import (  # type: ignore[import-untyped] # it ships no types
    create_s256_code_challenge,
)
from authlib.oidc.core import CodeIDToken  # type: ignore[import-untyped] # as above
from authlib.oidc.discovery import get_well_known_url  # type: ignore[import-untyped] # as above
from joserfc import jws, jwt
from joserfc.errors import BadSignatureError, JoseError
from joserfc.jwk import JWKRegistry, Key

from gateway.errors import NotFound, Unauthenticated, Unavailable
from gateway.outward import Declined, NoAnswer, Outward, origin_of
from gateway.sign_in_settings import Issuer

log = logging.getLogger(__name__)

KNOWN_S = 3600.0
_KEYS_EVERY_S = 60.0
_LEEWAY_S = 60  # clocks differ
# Never `none`, and nothing symmetric: whoever knows our secret or their key would sign as they do.
ALGORITHMS = tuple(f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512))
_KEY_TYPES = ("RSA", "EC")
_REFUSALS = range(400, 500)  # of a code, say


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What an issuer says of itself (OpenID Connect Discovery 1.0); the rest is not needed."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """What a code is exchanged for."""

    id_token: str
    access_token: str


class Asking(NamedTuple):
    """What one sign-in is told apart by."""

    redirect_uri: str
    state: str
    nonce: str
    verifier: str


class Returned(NamedTuple):
    """What came back with somebody's browser."""

    code: str
    iss: str | None  # RFC 9207


class Claims(NamedTuple):
    """Who somebody is, as their issuer has it."""

    subject: str
    email: str  # "": it does not say
    is_verified: bool
    name: str


class _Refused(Exception):
    """What came back is not true; the message says why, for a log."""


class _Known(NamedTuple):
    metadata: Metadata
    keys: Sequence[Key]
    at_s: float


class Issuers:
    """All that are configured."""

    def __init__(
        self, issuers: Sequence[Issuer], outward: Outward, monotonic_s: Callable[[], float]
    ) -> None:
        self._issuers = {issuer.name: issuer for issuer in issuers}
        self._outward, self._clock = outward, monotonic_s
        self._known: dict[str, _Known] = {}
        self._turns = {name: asyncio.Lock() for name in self._issuers}

    def find(self, name: str) -> Issuer:
        """The one of this name; `NotFound`."""
        try:
            return self._issuers[name]
        except KeyError as error:
            raise NotFound(
                f"Nobody signs in at {name!r} here; GET /api/v1/session/issuers lists where.",
                code="issuer_not_found",
            ) from error

    async def url(self, issuer: Issuer, asking: Asking) -> str:
        """Where somebody's browser is to go; `Unavailable`."""
        try:
            known = await self._read(issuer, older_s=KNOWN_S)
        except NoAnswer as error:
            raise _unavailable(issuer, error) from error
        endpoint = known.metadata.authorization_endpoint
        query = {
            "response_type": "code",
            "client_id": issuer.client_id,
            "redirect_uri": asking.redirect_uri,
            "scope": " ".join(issuer.scopes),
            "state": asking.state,
            "nonce": asking.nonce,
            "code_challenge": create_s256_code_challenge(asking.verifier),
            "code_challenge_method": "S256",
        }
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"

    async def claims(
        self, issuer: Issuer, returned: Returned, asking: Asking, *, now_s: float
    ) -> Claims:
        """Who came back. `Unauthenticated`: it cannot be believed. `Unavailable`."""
        try:
            known = await self._read(issuer, older_s=KNOWN_S)
            _check_sender(known.metadata, returned)
            tokens = await self._exchanged(issuer, known.metadata, returned, asking)
            said = await self._checked(issuer, tokens, asking, now_s=now_s)
            if "email" not in said and known.metadata.userinfo_endpoint is not None:
                said = await self._with_info(issuer, known.metadata, tokens, said)
        except Declined as error:
            if error.status not in _REFUSALS:
                raise _unavailable(issuer, error) from error
            raise _refused(issuer, error) from error
        except NoAnswer as error:
            raise _unavailable(issuer, error) from error
        except (_Refused, JoseError, msgspec.MsgspecError, ValueError, TypeError) as error:
            raise _refused(issuer, error) from error
        email, name = said.get("email"), said.get("name")
        return Claims(
            subject=str(said["sub"]),
            email=email if isinstance(email, str) else "",
            # Some issuers say it as a text.
            is_verified=said.get("email_verified") in (True, "true"),
            name=name if isinstance(name, str) else "",
        )

    async def _read(self, issuer: Issuer, *, older_s: float) -> _Known:
        """What is known of it, read again if that is older; one at a time asks."""
        async with self._turns[issuer.name]:
            known = self._known.get(issuer.name)
            if known is not None and self._clock() - known.at_s < older_s:
                return known
            origin = origin_of(issuer.issuer)
            where = get_well_known_url(issuer.issuer, external=True)
            try:
                said = msgspec.convert(await self._outward.get(where, known=origin), Metadata)
                if said.issuer != issuer.issuer:
                    raise NoAnswer(f"it calls itself {said.issuer!r}")
                if origin_of(said.authorization_endpoint).scheme != origin.scheme:
                    raise NoAnswer("it would send people to a page without TLS")
                keys = _keys(await self._outward.get(said.jwks_uri, known=origin))
            except (msgspec.ValidationError, JoseError, ValueError) as error:
                raise NoAnswer(f"{type(error).__name__}: {error}") from error
            known = _Known(said, keys, self._clock())
            self._known[issuer.name] = known
            return known

    async def _exchanged(
        self, issuer: Issuer, metadata: Metadata, returned: Returned, asking: Asking
    ) -> Tokens:
        form = {
            "grant_type": "authorization_code",
            "code": returned.code,
            "redirect_uri": asking.redirect_uri,
            "code_verifier": asking.verifier,
        }
        headers = {}
        if issuer.client_secret is None:
            form["client_id"] = issuer.client_id
        elif "client_secret_basic" in metadata.token_endpoint_auth_methods_supported:
            pair = (issuer.client_id, issuer.client_secret.reveal())
            packed = ":".join(map(quote_plus, pair)).encode()  # RFC 6749, 2.3.1
            headers["Authorization"] = f"Basic {base64.b64encode(packed).decode()}"
        else:
            form |= {"client_id": issuer.client_id, "client_secret": issuer.client_secret.reveal()}
        said = await self._outward.post(
            metadata.token_endpoint, form, known=origin_of(issuer.issuer), headers=headers
        )
        return msgspec.convert(said, Tokens)

    async def _checked(
        self, issuer: Issuer, tokens: Tokens, asking: Asking, *, now_s: float
    ) -> dict[str, Any]:
        """The claims of the ID token, every one that must be checked checked."""
        header = jws.extract_compact(tokens.id_token.encode()).headers()
        known = await self._read(issuer, older_s=KNOWN_S)
        token = _decoded(tokens.id_token, header, known.keys)
        if token is None:
            # A key that was not there an hour ago: the issuer has changed its keys.
            known = await self._read(issuer, older_s=_KEYS_EVERY_S)
            token = _decoded(tokens.id_token, header, known.keys)
        if token is None:
            raise _Refused("no key of the issuer signed it")
        claims = CodeIDToken(
            token.claims,
            token.header,
            options={
                "iss": {"essential": True, "value": issuer.issuer},
                "aud": {"essential": True, "value": issuer.client_id},
                "sub": {"essential": True},
            },
            params={
                "nonce": asking.nonce,
                "client_id": issuer.client_id,
                "access_token": tokens.access_token,
            },
        )
        claims.validate(now=int(now_s), leeway=_LEEWAY_S)
        return dict(claims)

    async def _with_info(
        self, issuer: Issuer, metadata: Metadata, tokens: Tokens, said: dict[str, Any]
    ) -> dict[str, Any]:
        """The claims with those that the issuer tells at its userinfo endpoint only."""
        assert metadata.userinfo_endpoint is not None, "the caller has looked"
        info = await self._outward.get(
            metadata.userinfo_endpoint,
            known=origin_of(issuer.issuer),
            headers={"Authorization": f"Bearer {tokens.access_token}"},
        )
        if not isinstance(info, dict) or info.get("sub") != said["sub"]:
            raise _Refused("the userinfo is somebody else's")
        return {**info, **said}


def _check_sender(metadata: Metadata, returned: Returned) -> None:
    """RFC 9207: an answer of another issuer's is not taken for this one's."""
    is_wanted = metadata.authorization_response_iss_parameter_supported
    if returned.iss != metadata.issuer and (is_wanted or returned.iss is not None):
        raise _Refused(f"the answer is from {returned.iss!r}")


def _keys(said: Any) -> list[Key]:
    """The keys for signatures; those of kinds that nothing here uses are passed over."""
    found = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(found, list):
        raise NoAnswer("its keys are no list")
    return [
        JWKRegistry.import_key(one)
        for one in found
        if isinstance(one, dict) and one.get("kty") in _KEY_TYPES and one.get("use") != "enc"
    ]


def _decoded(text: str, header: Mapping[str, Any], keys: Sequence[Key]) -> jwt.Token | None:
    """The token, if one of these keys signed it. Raises `JoseError` for another algorithm."""
    wanted = header.get("kid")
    kind = "EC" if str(header.get("alg")).startswith("ES") else "RSA"
    for key in keys:
        if key.key_type != kind or (wanted is not None and key.kid not in {None, wanted}):
            continue
        try:
            return jwt.decode(text, key, algorithms=ALGORITHMS)
        except BadSignatureError:
            continue
    if header.get("alg") not in ALGORITHMS:
        raise _Refused(f"signed by {header.get('alg')!r}")
    return None


def _unavailable(issuer: Issuer, error: Exception) -> Unavailable:
    _tell(issuer, error)
    return Unavailable(
        f"{issuer.name} does not answer as it should at the moment. Try again later, or sign in"
        " another way.",
        code="issuer_unavailable",
    )


def _refused(issuer: Issuer, error: Exception) -> Unauthenticated:
    _tell(issuer, error)
    return Unauthenticated(
        f"What came back from {issuer.name} cannot be believed. Start again.", code="issuer_refused"
    )


def _tell(issuer: Issuer, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}"[:300]
    said = {"issuer": issuer.name, "reason": reason}
    log.warning("an issuer let nobody in", extra={"cause": "issuer", **said})
