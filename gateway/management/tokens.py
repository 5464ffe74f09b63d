"""Tokens of the management API: a person's own, and an organization's, with a role.

A token can do what its scopes say and no more than who it stands for. Its text is shown once. No
token makes a token.
"""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

import asyncpg
import msgspec

from gateway.errors import BadRequest, Conflict, Forbidden, NotFound
from gateway.management.audit import note
from gateway.management.bearers import BearerKind, NewBearer, issue
from gateway.management.desk import Desk
from gateway.policy import Permission, Role, may_give
from gateway.rest.caller import SESSION, Scope, member
from gateway.rest.cursor import Page
from gateway.rest.route import Answer, Asked, Nothing, Route

TOKENS_MAX = 50  # of one person, and of one organization

TokenName = Annotated[
    str, msgspec.Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")
]
Scopes = Annotated[list[Scope], msgspec.Meta(min_length=1, max_length=len(Scope))]

_INSERT = """
    INSERT INTO token (id, person_id, organization_id, name, role, scopes, digest, last4,
                       created_by, created_at, expires_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""
_LISTED = """
    SELECT id, name, role, scopes, last4, created_by, created_at, expires_at FROM token
    WHERE (person_id = $1 OR organization_id = $2) AND revoked_at IS NULL
    ORDER BY created_at DESC, id
"""
_REVOKE = """
    UPDATE token SET revoked_at = $4
    WHERE id = $3 AND (person_id = $1 OR organization_id = $2) AND revoked_at IS NULL
    RETURNING name
"""


class NewToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a token of one's own is to be."""

    name: TokenName
    scopes: Scopes
    expires_at: datetime | None = None  # null: when it is revoked


class NewOrganizationToken(NewToken, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a token of the organization is to be."""

    role: Role  # as whom it acts


class TokenView(msgspec.Struct, frozen=True, kw_only=True):
    """A token, without its text."""

    id: UUID
    name: str
    role: Role | None  # null: a person's own, as whom they are
    scopes: list[Scope]
    last4: str
    created_by: str
    created_at: datetime
    expires_at: datetime | None


class MadeToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token just made."""

    secret: str  # shown this once
    token: TokenView


async def mine(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """One's own tokens, the newest first."""
    return await _listed(desk, asked.caller.person, None)


async def create(desk: Desk, asked: Asked[Nothing, NewToken]) -> Answer:
    """Make a token that acts as oneself."""
    made = await _made(desk, asked, person_id=asked.caller.person)
    return Answer(made)


async def revoke(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """End one of one's own tokens, at once."""
    token_id = asked.id("token_id")
    if await desk.pool.fetchval(_REVOKE, asked.caller.person, None, token_id, desk.now()) is None:
        raise _no_token(token_id)
    return Answer()


async def of_organization(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """The organization's tokens, the newest first."""
    return await _listed(desk, None, asked.caller.place.organization_id)


async def create_for_organization(
    desk: Desk, asked: Asked[Nothing, NewOrganizationToken]
) -> Answer:
    """Make a token that acts for the organization; it ends when who made it leaves."""
    place, role = asked.caller.place, asked.body.role
    if not may_give(place.role, before=None, after=role):
        raise Forbidden("Only owners make a token with an owner's role.", code="owners_only")
    return Answer(await _made(desk, asked, organization_id=place.organization_id, role=role))


async def revoke_of_organization(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """End one of the organization's tokens, at once."""
    token_id, organization_id = asked.id("token_id"), asked.caller.place.organization_id
    async with desk.pool.acquire() as connection, connection.transaction():
        name = await connection.fetchval(_REVOKE, None, organization_id, token_id, desk.now())
        if name is None:
            raise _no_token(token_id)
        await note(connection, asked, "token.revoke", target=str(token_id), before={"name": name})
    return Answer()


async def _listed(desk: Desk, person_id: UUID | None, organization_id: UUID | None) -> Answer:
    rows = await desk.pool.fetch(_LISTED, person_id, organization_id)
    return Answer(Page[TokenView](data=[_view(row) for row in rows], next_cursor=None))


async def _made(
    desk: Desk,
    asked: Asked[Nothing, Any],
    *,
    person_id: UUID | None = None,
    organization_id: UUID | None = None,
    role: Role | None = None,
) -> MadeToken:
    wanted, now = asked.body, desk.now()
    if wanted.expires_at is not None and (
        wanted.expires_at.tzinfo is None or wanted.expires_at <= now
    ):
        raise BadRequest(
            "expires_at is a time to come, with its offset: 2030-12-31T00:00:00Z.",
            code="invalid_expires_at",
            param="expires_at",
        )
    kind = BearerKind.PERSONAL if organization_id is None else BearerKind.ORGANIZATION
    bearer: NewBearer = issue(kind, desk.random_bytes, desk.digest)
    token_id, scopes = uuid4(), sorted(set(wanted.scopes))
    async with desk.pool.acquire() as connection, connection.transaction():
        if len(await connection.fetch(_LISTED, person_id, organization_id)) >= TOKENS_MAX:
            raise Conflict(
                f"There are {TOKENS_MAX} tokens, which is the most. Revoke one first.",
                code="tokens_max",
            )
        await connection.execute(
            _INSERT,
            token_id,
            person_id,
            organization_id,
            wanted.name,
            role,
            scopes,
            bearer.digest,
            bearer.last4,
            asked.caller.actor,
            now,
            wanted.expires_at,
        )
        if organization_id is not None:
            said = {"name": wanted.name, "role": role, "scopes": scopes}
            await note(connection, asked, "token.create", target=str(token_id), after=said)
    view = TokenView(
        id=token_id,
        name=wanted.name,
        role=role,
        scopes=scopes,
        last4=bearer.last4,
        created_by=asked.caller.actor,
        created_at=now,
        expires_at=wanted.expires_at,
    )
    return MadeToken(secret=bearer.secret.reveal(), token=view)


def _view(row: asyncpg.Record) -> TokenView:
    return TokenView(
        id=row["id"],
        name=row["name"],
        role=None if row["role"] is None else Role(row["role"]),
        scopes=[Scope(scope) for scope in row["scopes"]],
        last4=row["last4"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
    )


def _no_token(token_id: UUID) -> NotFound:
    return NotFound(f"There is no token {token_id} here.", code="token_not_found")


ROUTES = (
    Route(
        method="GET",
        path="/me/tokens",
        name="tokens.mine",
        says="One's own tokens.",
        access=SESSION,
        handle=mine,
        answers=Page[TokenView],
    ),
    # No Idempotency-Key, for both: the answer would be kept, and with it the secret.
    Route(
        method="POST",
        path="/me/tokens",
        name="tokens.create",
        says="Make a token that acts as oneself; its text is shown this once.",
        access=SESSION,
        handle=create,
        body=NewToken,
        answers=MadeToken,
        status=201,
        raises=(409,),
    ),
    Route(
        method="DELETE",
        path="/me/tokens/{token_id}",
        name="tokens.revoke",
        says="End one of one's own tokens.",
        access=SESSION,
        handle=revoke,
    ),
    Route(
        method="GET",
        path="/tokens",
        name="tokens.of_organization",
        says="The organization's tokens.",
        access=member(Permission.TOKEN_MANAGE, None),
        handle=of_organization,
        answers=Page[TokenView],
    ),
    Route(
        method="POST",
        path="/tokens",
        name="tokens.create_for_organization",
        says="Make a token that acts for the organization; its text is shown this once.",
        access=member(Permission.TOKEN_MANAGE, None),
        handle=create_for_organization,
        body=NewOrganizationToken,
        answers=MadeToken,
        status=201,
        raises=(409,),
    ),
    Route(
        method="DELETE",
        path="/tokens/{token_id}",
        name="tokens.revoke_of_organization",
        says="End one of the organization's tokens.",
        access=member(Permission.TOKEN_MANAGE, None),
        handle=revoke_of_organization,
    ),
)
