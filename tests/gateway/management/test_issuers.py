"""What issuers say and sign: keys that change, algorithms, documents that lead elsewhere."""

import base64
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from gateway import outward
from gateway.errors import Unauthenticated, Unavailable
from gateway.management.issuers import KNOWN_S, Asking, Claims, Issuers, Returned
from gateway.sign_in_settings import Issuer
from providers.adapter import Secret
from tests.gateway.management.elsewhere import Elsewhere

ASKING = Asking("http://localhost:8081/signed-in/forge", "state", "a nonce", "v" * 43)
RETURNED = Returned("code", None)


def now_s() -> int:
    return int(time.time())  # noqa: TID251 - a test is its own root


NOW_S = now_s()
RSA = RSAKey.generate_key(2048, {"kid": "1"})


@dataclass
class Forge:
    """An issuer that says and signs what a test wants."""

    url: str = ""
    keys: list[dict[str, Any]] = field(default_factory=lambda: [dict(RSA.as_dict(private=False))])
    metadata: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=lambda: {"alg": "RS256", "kid": "1"})
    key: Any = field(default_factory=lambda: RSA)
    token: str = ""
    asked: list[str] = field(default_factory=list)
    form: dict[str, Any] = field(default_factory=dict)
    authorization: str = ""

    def signed(self) -> str:
        whole = {
            "iss": self.url,
            "aud": "us",
            "sub": "ada",
            "nonce": ASKING.nonce,
            "iat": NOW_S,
            "exp": NOW_S + 600,
            "email": "ada@example.com",
            "email_verified": True,
            **self.claims,
        }
        said = {name: value for name, value in whole.items() if value is not None}
        return self.token or jwt.encode(self.header, said, self.key, [self.header["alg"]])

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        match request.path:
            case "/.well-known/openid-configuration":
                names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
                said = {name: f"{self.url}/{name}" for name in names}
                return web.json_response({"issuer": self.url, **said, **self.metadata})
            case "/jwks_uri":
                return web.json_response({"keys": self.keys})
            case "/token_endpoint":
                self.form = dict(await request.post())
                self.authorization = request.headers.get("Authorization", "")
                return web.json_response({"id_token": self.signed(), "access_token": "t"})
            case _:
                return web.json_response(self.info)


@dataclass
class Stage:
    forge: Forge
    issuer: Issuer
    issuers: Issuers
    clock: list[float]

    async def claims(self, returned: Returned = RETURNED) -> Claims:
        return await self.issuers.claims(self.issuer, returned, ASKING, now_s=NOW_S)


@asynccontextmanager
async def staged(secret: str | None = "a secret") -> AsyncIterator[Stage]:  # noqa: S107 - of the test
    forge, clock = Forge(), [0.0]
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", forge.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    forge.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    issuer = Issuer(
        name="forge",
        issuer=forge.url,
        client_id="us",
        client_secret=None if secret is None else Secret(secret),
    )
    async with outward.opened() as asking:
        yield Stage(forge, issuer, Issuers([issuer], asking, lambda: clock[0]), clock)
    await runner.cleanup()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged() as opened:
        yield opened


async def test_what_is_signed_for_us_is_believed(stage: Stage) -> None:
    assert await stage.claims() == Claims("ada", "ada@example.com", is_verified=True, name="")


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"nonce": "other"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"aud": "other"}, "aud"),
        ({"aud": []}, "aud"),
        ({"aud": ["us", "other"]}, "azp"),
        ({"azp": "other"}, "azp"),
        ({"iss": "https://issuer.example"}, "iss"),
        ({"exp": NOW_S - 61}, "exp"),
        ({"exp": None}, "exp"),
        ({"iat": NOW_S + 61}, "in the future"),
        ({"nbf": NOW_S + 61}, "not yet valid"),
        ({"sub": None}, "sub"),
        ({"sub": 7}, "sub"),
        ({"at_hash": "AAAA"}, "at_hash"),
    ],
)
async def test_each_claim_is_checked(
    stage: Stage, claims: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage.forge.claims = claims
    with pytest.raises(Unauthenticated, match="cannot be believed"):
        await stage.claims()
    assert why in caplog.records[-1].reason  # type: ignore[attr-defined] # a field of the line


async def test_nothing_unsigned_or_symmetric_is_believed(stage: Stage) -> None:
    forge = stage.forge
    whole = forge.signed().split(".")
    for header, signature in (({"alg": "none"}, ""), ({"alg": "none", "kid": "1"}, whole[2])):
        head = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
        forge.token = f"{head}.{whole[1]}.{signature}"
        with pytest.raises(Unauthenticated):
            await stage.claims()
    # Their public key and our secret are both known to others than the issuer.
    for known in (RSA.as_pem(private=False), b"a secret"):
        symmetric = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"1"}').rstrip(b"=")
        signed = symmetric + b"." + whole[1].encode()
        mac = base64.urlsafe_b64encode(hmac.digest(known, signed, "sha256")).rstrip(b"=")
        forge.token = (signed + b"." + mac).decode()
        with pytest.raises(Unauthenticated):
            await stage.claims()


async def test_a_key_of_nobodys_signs_nothing(stage: Stage) -> None:
    stage.forge.key = RSAKey.generate_key(2048)
    with pytest.raises(Unauthenticated):
        await stage.claims()


async def test_a_new_key_is_read_at_once_and_unknown_ones_once_a_minute(stage: Stage) -> None:
    forge = stage.forge
    await stage.claims()
    new = ECKey.generate_key("P-256", {"kid": "2"})
    forge.keys = [{"kty": "AKP", "kid": "0"}, dict(new.as_dict(private=False))]
    forge.header, forge.key = {"alg": "ES256", "kid": "2"}, new
    with pytest.raises(Unauthenticated):
        await stage.claims()
    stage.clock[0] += 60
    assert (await stage.claims()).subject == "ada"
    forge.key = ECKey.generate_key("P-256", {"kid": "3"})
    forge.header = {"alg": "ES256", "kid": "3"}
    reads = forge.asked.count("/jwks_uri")
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await stage.claims()
    assert forge.asked.count("/jwks_uri") == reads


async def test_what_an_issuer_says_of_itself_is_kept_for_an_hour(stage: Stage) -> None:
    for _ in range(3):
        await stage.issuers.url(stage.issuer, ASKING)
    assert stage.forge.asked.count("/.well-known/openid-configuration") == 1
    stage.clock[0] += KNOWN_S
    await stage.issuers.url(stage.issuer, ASKING)
    assert stage.forge.asked.count("/.well-known/openid-configuration") == 2


@pytest.mark.parametrize(
    "said",
    [
        {"issuer": "https://issuer.example"},
        {"jwks_uri": "http://169.254.169.254/keys"},
        {"jwks_uri": "https://127.0.0.1:1/keys"},
        {"token_endpoint": "http://127.0.0.1:1/token"},
        {"token_endpoint": "https://10.0.0.1/token"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": 7},
        {"jwks_uri": None},
    ],
)
async def test_a_document_that_leads_elsewhere_leads_nowhere(
    stage: Stage, said: dict[str, Any]
) -> None:
    stage.forge.metadata = said
    with pytest.raises(Unavailable, match="does not answer as it should"):
        await stage.claims()


async def test_an_answer_of_another_issuer_is_not_taken(stage: Stage) -> None:
    with pytest.raises(Unauthenticated):
        await stage.claims(Returned("code", "https://issuer.example"))
    await stage.claims(Returned("code", stage.forge.url))
    stage.clock[0] += KNOWN_S
    stage.forge.metadata = {"authorization_response_iss_parameter_supported": True}
    with pytest.raises(Unauthenticated):
        await stage.claims()


async def test_what_only_the_userinfo_tells_is_asked_there(stage: Stage) -> None:
    forge = stage.forge
    forge.metadata = {"userinfo_endpoint": f"{forge.url}/userinfo"}
    forge.claims = {"email": None, "email_verified": None}
    forge.info = {"sub": "ada", "email": "there@example.com", "email_verified": True}
    found = await stage.claims()
    assert (found.email, found.is_verified) == ("there@example.com", True)
    forge.info["sub"] = "eve"
    with pytest.raises(Unauthenticated):
        await stage.claims()


async def test_our_secret_is_sent_as_the_issuer_wants_it(stage: Stage) -> None:
    forge = stage.forge
    await stage.claims()
    assert forge.authorization == f"Basic {base64.b64encode(b'us:a+secret').decode()}"
    assert forge.form["code_verifier"] == ASKING.verifier
    assert "client_secret" not in forge.form
    stage.clock[0] += KNOWN_S
    forge.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    await stage.claims()
    assert (forge.authorization, forge.form["client_secret"]) == ("", "a secret")


async def test_a_public_client_has_no_secret() -> None:
    async with staged(secret=None) as stage:
        await stage.claims()
        assert (stage.forge.authorization, stage.forge.form["client_id"]) == ("", "us")
        assert "client_secret" not in stage.forge.form


async def test_a_real_issuer_that_has_new_keys_goes_on_signing_people_in() -> None:
    clock = [0.0]
    async with outward.opened() as asking:
        with Elsewhere.running() as first:
            issuer = Issuer(
                name="real", issuer=first.url, client_id="us", client_secret=Secret("x")
            )
            issuers = Issuers([issuer], asking, lambda: clock[0])
            code = (await first.visited(await issuers.url(issuer, ASKING), "ada"))["code"]
            await issuers.claims(issuer, Returned(code, None), ASKING, now_s=now_s())
        with Elsewhere.running(first.port) as second:
            code = (await second.visited(await issuers.url(issuer, ASKING), "ada"))["code"]
            clock[0] += 60
            found = await issuers.claims(issuer, Returned(code, None), ASKING, now_s=now_s())
    assert found.email == "ada@example.com"


async def test_an_issuer_that_is_away_is_said_to_be() -> None:
    async with outward.opened() as asking:
        issuer = Issuer(name="gone", issuer="http://127.0.0.1:1", client_id="us")
        with pytest.raises(Unavailable) as caught:
            await Issuers([issuer], asking, lambda: 0.0).url(issuer, ASKING)
    assert caught.value.code == "issuer_unavailable"
