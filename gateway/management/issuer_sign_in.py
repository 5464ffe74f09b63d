"""Signing in at an issuer of OpenID Connect, and signing up by it.

An account is found by the issuer's own id of a person, never by an address, but for the first time.
Then the address counts only if the issuer is trusted with it; else our own mail proves it, and who
has an account adds the issuer themselves. Whether an address is known is told to nobody else.
"""

from uuid import UUID, uuid4

import msgspec

from gateway.errors import Forbidden, Unauthenticated
from gateway.management import challenges, codes, identities, people, sessions
from gateway.management.challenges import Purpose
from gateway.management.codes import Code
from gateway.management.desk import Desk
from gateway.management.identities import ComingBack, Directions, IssuerOnly
from gateway.management.issuers import Claims
from gateway.management.mails import Mail, post
from gateway.management.people import EMAIL_PATTERN
from gateway.management.sessions import Session
from gateway.rest.caller import ANYBODY
from gateway.rest.cursor import Page
from gateway.rest.rates import GUESSING
from gateway.rest.route import Answer, Asked, Nothing, Route
from gateway.sign_in_settings import Issuer
from ledger.postgres import Connection

_LINKED = """
    SELECT p.id, p.email, p.verified_at IS NOT NULL AS is_verified,
           p.disabled_at IS NOT NULL AS is_disabled
    FROM identity AS i JOIN person AS p ON p.id = i.person_id
    WHERE i.issuer = $1 AND i.subject = $2
"""
_USED = "UPDATE identity SET used_at = $3 WHERE issuer = $1 AND subject = $2"
_BY_EMAIL = """
    SELECT id, verified_at IS NOT NULL AS is_verified, disabled_at IS NOT NULL AS is_disabled
    FROM person WHERE lower(email) = $1 FOR NO KEY UPDATE
"""
_INSERT = """
    INSERT INTO person (id, email, name, verified_at, created_at) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (lower(email)) DO NOTHING
    RETURNING id
"""
# Whoever signed up with an address that was not theirs keeps no way into the account of its owner.
_VOID_PASSWORD = "UPDATE person SET password = NULL, version = version + 1 WHERE id = $1"  # noqa: S105 - SQL
# Their address at the issuer is another one by now, and the one before was never proved.
_FORGET_UNPROVED = """
    DELETE FROM identity AS i USING person AS p
    WHERE p.id = i.person_id AND p.verified_at IS NULL
      AND i.issuer = $1 AND i.subject = $2 AND lower(p.email) <> $3
"""
_VOID_IDENTITIES = "DELETE FROM identity WHERE person_id = $1"


class IssuerView(msgspec.Struct, frozen=True, kw_only=True):
    """Where people can sign in."""

    name: str


class ProofAndCode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `proof` of the answer that wanted a code, and the code."""

    proof: identities.Said
    code: Code


async def listed(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """The issuers of this installation, in the order of its configuration."""
    del asked
    found = [IssuerView(name=one.name) for one in desk.config.management.sign_in]
    return Answer(Page[IssuerView](data=found, next_cursor=None))


async def start(desk: Desk, asked: Asked[Nothing, IssuerOnly]) -> Answer:
    """Where to go to sign in."""
    return await identities.sent_to(desk, desk.issuers.find(asked.body.issuer), Purpose.ISSUER)


async def sign_in(desk: Desk, asked: Asked[Nothing, ComingBack]) -> Answer:
    """Sign in who came back; the session is not strong, as nobody here saw a second factor."""
    issuer = desk.issuers.find(asked.body.issuer)
    claims = await identities.who_came_back(desk, asked, issuer, Purpose.ISSUER)
    # By account as well: many machines may come back as one person.
    desk.rates.take("identity", f"{issuer.issuer} {claims.subject}", GUESSING)
    person_id = await _person(desk, asked, issuer, claims)
    if await codes.are_wanted(desk, person_id):
        proof = challenges.new(desk, Purpose.CODE, person_id=person_id)
        raise Unauthenticated(
            "A code is wanted besides: send it with this `proof` to POST"
            " /api/v1/session/issuer/code.",
            code="second_factor_required",
            param="code",
            extra={"proof": challenges.sealed(desk, proof)},
        )
    await people.make_account(desk, person_id, address=asked.caller.address)
    answer = await sessions.signed_in(desk, asked, person_id, is_strong=False)
    return answer._replace(cookies={**answer.cookies, challenges.COOKIE: None})


async def finish(desk: Desk, asked: Asked[Nothing, ProofAndCode]) -> Answer:
    """Sign in who came back and shows a code; with it, the session is strong."""
    proof = challenges.good(desk, asked, asked.body.proof, Purpose.CODE)
    assert proof.person_id is not None, "it is made for somebody"
    address = asked.caller.address
    # Before the proof is used: who mistypes a code tries again.
    is_strong = await codes.was_shown(desk, proof.person_id, asked.body.code, address=address)
    await challenges.use(desk, proof)
    return await sessions.signed_in(desk, asked, proof.person_id, is_strong=is_strong)


async def _person(
    desk: Desk, asked: Asked[Nothing, ComingBack], issuer: Issuer, claims: Claims
) -> UUID:
    """Whose account this is, linked or made if it is a first time."""
    row = await desk.pool.fetchrow(_LINKED, issuer.issuer, claims.subject)
    email = claims.email.lower()
    if row is not None and row["is_disabled"]:
        raise _disabled()
    if row is not None and row["is_verified"]:
        await desk.pool.execute(_USED, issuer.issuer, claims.subject, desk.now())
        return UUID(str(row["id"]))
    if not claims.is_verified or EMAIL_PATTERN.fullmatch(email) is None:
        raise Forbidden(
            f"{issuer.name} does not say that your e-mail address was verified. Verify it there,"
            " or sign up here.",
            code="email_not_verified_there",
        )
    if issuer.trust_emails:
        return await _by_trusted_email(desk, asked, issuer, claims._replace(email=email))
    await _by_mail(desk, issuer, claims._replace(email=email))
    raise Forbidden(
        f"A mail was sent to {email}. It says how to go on; then sign in here again.",
        code="email_not_verified",
    )


async def _by_trusted_email(
    desk: Desk, asked: Asked[Nothing, ComingBack], issuer: Issuer, claims: Claims
) -> UUID:
    """The account of this address, which the issuer vouches for; a new one if need be."""
    may_sign_up = await people.may_sign_up(desk, claims.email)
    async with desk.pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(_BY_EMAIL, claims.email)
        if row is not None and row["is_disabled"]:
            raise _disabled()
        if row is None and not may_sign_up:
            raise people.not_invited()
        if row is None:
            person_id = await _made(desk, connection, claims, is_proved=True)
            await identities.linked(desk, connection, person_id, issuer, claims)
            return person_id
        person_id = UUID(str(row["id"]))
        if not row["is_verified"]:
            await connection.execute(_VOID_PASSWORD, person_id)
            await connection.execute(_VOID_IDENTITIES, person_id)
            await connection.execute(people.VERIFY, person_id, desk.now())
        await identities.linked(desk, connection, person_id, issuer, claims)
        await identities.tell(desk, connection, asked, person_id, issuer)
    return person_id


async def _by_mail(desk: Desk, issuer: Issuer, claims: Claims) -> None:
    """Write to the address: a link that proves it, or why there is none."""
    may_sign_up = await people.may_sign_up(desk, claims.email)
    async with desk.pool.acquire() as connection, connection.transaction():
        await connection.execute(_FORGET_UNPROVED, issuer.issuer, claims.subject, claims.email)
        row = await connection.fetchrow(_BY_EMAIL, claims.email)
        if row is None and may_sign_up:
            person_id = await _made(desk, connection, claims, is_proved=False)
            await identities.linked(desk, connection, person_id, issuer, claims)
            await people.send_link(desk, connection, person_id, claims.email, "verify")
            return
        own = await connection.fetchrow(_LINKED, issuer.issuer, claims.subject)
        if row is not None and own is not None and own["id"] == row["id"]:
            # They came back before they opened the link.
            await people.send_link(desk, connection, row["id"], claims.email, "verify")
            return
        facts = {"site": desk.site, "issuer": issuer.name, "has_account": row is not None}
        await post(connection, Mail(claims.email, "elsewhere", facts), desk.now())


async def _made(desk: Desk, connection: Connection, claims: Claims, *, is_proved: bool) -> UUID:
    now = desk.now()
    name = "".join(one for one in claims.name if one.isprintable())[:200]
    row = (uuid4(), claims.email, name, now if is_proved else None, now)
    made = await connection.fetchval(_INSERT, *row)
    if made is None:
        raise Forbidden("Somebody with this address signed up just now. Try again.", code="busy")
    return UUID(str(made))


def _disabled() -> Unauthenticated:
    return Unauthenticated(
        "This account was closed. Ask who runs the installation.", code="account_closed"
    )


ROUTES = (
    Route(
        method="GET",
        path="/session/issuers",
        name="sessions.issuers",
        says="Where else people can sign in.",
        access=ANYBODY,
        handle=listed,
        answers=Page[IssuerView],
    ),
    Route(
        method="POST",
        path="/session/issuer/challenges",
        name="sessions.start_issuer",
        says="Where a browser is to go to sign in at an issuer.",
        access=ANYBODY,
        handle=start,
        body=IssuerOnly,
        answers=Directions,
        status=201,
        raises=(404,),
    ),
    Route(
        method="POST",
        path="/session/issuer",
        name="sessions.sign_in_by_issuer",
        says="Sign in who came back from an issuer.",
        access=ANYBODY,
        handle=sign_in,
        body=ComingBack,
        answers=Session,
        status=201,
        is_guessed=True,
        raises=(401, 403, 404, 409),
    ),
    Route(
        method="POST",
        path="/session/issuer/code",
        name="sessions.finish_issuer",
        says="Sign in who came back and has a second factor, with a code.",
        access=ANYBODY,
        handle=finish,
        body=ProofAndCode,
        answers=Session,
        status=201,
        is_guessed=True,
        raises=(401, 409),
    ),
)
