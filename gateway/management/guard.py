"""Who asks, and whether they may: the one place that decides, before any handler runs.

Default is no: a route names the permission it wants, the organization's policy says which roles
have it, and a token needs the route's scope besides. Somebody who is not in an organization is told
that there is none of this id, as one who guesses ids would be.
"""

import hashlib
import hmac
from datetime import timedelta
from typing import Any, NamedTuple, assert_never
from uuid import UUID

import asyncpg
import msgspec

from gateway.errors import BadRequest, Forbidden, NotFound, Unauthenticated
from gateway.management.bearers import BearerKind, kind_of
from gateway.management.desk import Desk
from gateway.policy import Permission, Preset, Role, Switches, policy_of
from gateway.rest.caller import Caller, Knock, Place, Scope, Who
from gateway.rest.route import Route

SESSION_IDLE = timedelta(days=14)
_SEEN_EVERY = timedelta(minutes=5)

_SESSION = """
    SELECT s.id, s.person_id, s.is_strong, s.seen_at, p.email, p.is_operator, p.account_id
    FROM session AS s JOIN person AS p ON p.id = s.person_id
    WHERE s.digest = $1 AND s.ended_at IS NULL AND s.expires_at > $2 AND s.seen_at > $3
      AND p.disabled_at IS NULL
"""
_SEEN = "UPDATE session SET seen_at = $2 WHERE id = $1"
_TOKENS_ROW = """
    SELECT t.id, t.name, t.scopes, t.role, t.organization_id, t.person_id, p.email,
           coalesce(p.is_operator, false) AS is_operator, p.account_id
    FROM token AS t LEFT JOIN person AS p ON p.id = t.person_id
    WHERE t.digest = $1 AND t.revoked_at IS NULL
      AND (t.expires_at IS NULL OR t.expires_at > $2) AND p.disabled_at IS NULL
"""
_PLACE = """
    SELECT m.id, m.role, m.grants, o.preset, o.switches
    FROM seat AS s JOIN member AS m ON m.id = s.member_id
    JOIN organization AS o ON o.id = s.organization_id
    WHERE s.person_id = $1 AND s.organization_id = $2
      AND m.removed_at IS NULL AND o.deleted_at IS NULL
"""
_ORGANIZATION = "SELECT preset, switches FROM organization WHERE id = $1 AND deleted_at IS NULL"
_OWNERS_ONLY_READ = frozenset({Permission.ORGANIZATION_READ, Permission.MEMBER_READ})


class _Known(NamedTuple):
    """Who shows a good cookie or token, before any organization is looked at."""

    caller: Caller
    account_id: UUID | None  # the person's own
    token_at: UUID | None = None  # an organization token's organization, and its role
    token_role: Role | None = None
    is_strong: bool = False  # a second factor was shown


class Doorman:
    """The guard of the management API."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def __call__(self, route: Route, knock: Knock) -> Caller:
        """The caller with their place; raises `Unauthenticated`, `Forbidden` or `NotFound`."""
        access = route.access
        if access.who is Who.ANYBODY:
            return Caller(actor="", address=knock.address)
        known = await self._known(route, knock)
        caller = known.caller
        _check_scope(caller, access.scope)
        match access.who:
            case Who.PERSON | Who.SESSION:
                if caller.person_id is None:
                    raise Forbidden(
                        "This is for people, and the token is an organization's.",
                        code="not_a_person",
                    )
                return caller
            case Who.OPERATOR:
                if not caller.is_operator:
                    raise Forbidden("This is for who runs the installation.", code="not_operator")
                return caller
            case Who.MEMBER:
                return await self._placed(known, access.permission, knock.organization)
            case _:
                assert_never(access.who)

    async def _known(self, route: Route, knock: Knock) -> _Known:
        if knock.authorization is not None:
            return await self._by_token(knock)
        if knock.cookie is None:
            raise _unknown("Sign in at POST /api/v1/session, or send a token.")
        if kind_of(knock.cookie) is not BearerKind.SESSION:
            raise _unknown("The session has ended. Sign in again.")
        digest, now = self._desk.digest(knock.cookie), self._desk.now()
        row = await self._desk.pool.fetchrow(_SESSION, digest, now, now - SESSION_IDLE)
        if row is None:
            raise _unknown("The session has ended. Sign in again.")
        if route.is_write and not hmac.compare_digest(
            (knock.csrf or "").encode(errors="replace"), csrf_of(digest).encode()
        ):
            raise Forbidden(
                "Send the csrf_token of GET /api/v1/session as X-CSRF-Token.", code="csrf_token"
            )
        if now - row["seen_at"] > _SEEN_EVERY:
            await self._desk.pool.execute(_SEEN, row["id"], now)
        caller = Caller(
            actor=row["email"],
            address=knock.address,
            person_id=row["person_id"],
            session_id=row["id"],
            is_operator=row["is_operator"],
        )
        return _Known(caller, row["account_id"], is_strong=row["is_strong"])

    async def _by_token(self, knock: Knock) -> _Known:
        scheme, _, text = (knock.authorization or "").partition(" ")
        text = text.strip()
        if scheme.lower() != "bearer" or kind_of(text) not in {
            BearerKind.PERSONAL,
            BearerKind.ORGANIZATION,
        }:
            raise _unknown("Send a management token as 'Authorization: Bearer tg_pat_...'.")
        row = await self._desk.pool.fetchrow(_TOKENS_ROW, self._desk.digest(text), self._desk.now())
        if row is None:
            raise _unknown("The token is unknown, revoked or expired.")
        caller = Caller(
            actor=row["email"] or f"token {row['name']}",
            address=knock.address,
            person_id=row["person_id"],
            is_operator=row["is_operator"],
            scopes=frozenset(Scope(scope) for scope in row["scopes"]),
        )
        role = None if row["role"] is None else Role(row["role"])
        return _Known(caller, row["account_id"], row["organization_id"], role, is_strong=True)

    async def _placed(self, known: _Known, wanted: Permission | None, named: str | None) -> Caller:
        organization_id = _organization(known, named)
        if known.token_role is not None:
            row = await self._desk.pool.fetchrow(_ORGANIZATION, organization_id)
            member_id, role = None, known.token_role
        else:
            row = await self._desk.pool.fetchrow(_PLACE, known.caller.person, organization_id)
            member_id, role = (None, Role.MEMBER) if row is None else (row["id"], Role(row["role"]))
        if row is None:
            raise _no_organization(organization_id)
        place = _place(organization_id, member_id, role, row)
        if member_id is not None:
            place = place._replace(grants=frozenset(row["grants"]))
        if wanted is None:
            return known.caller._replace(at=place)
        if (
            role is Role.OWNER
            and place.policy.owners_need_second_factor
            and not known.is_strong
            and wanted not in _OWNERS_ONLY_READ
        ):
            raise Forbidden(
                "Owners of this organization sign in with a second factor. Sign in with a"
                " passkey, or set one-time passwords up at POST /api/v1/me/one-time-passwords.",
                code="second_factor_required",
            )
        if not place.allows(wanted):
            label = place.policy.labels[role]
            raise Forbidden(
                f"Your role here, {label}, may not do this ({wanted.value}); it is for"
                f" {place.policy.audiences[wanted].value}.",
                code="not_permitted",
                extra={"permission": wanted.value},
            )
        return known.caller._replace(at=place)


def csrf_of(session_digest: bytes) -> str:
    """What a page of ours sends with each change, and a page of somebody else's cannot know."""
    return hmac.new(session_digest, b"csrf", hashlib.sha256).hexdigest()


def switches_in(text: str) -> Switches:
    """The switches of an organization's row."""
    return msgspec.json.decode(text, type=Switches)


def _place(organization_id: UUID, member_id: UUID | None, role: Role, row: asyncpg.Record) -> Place:
    policy = policy_of(Preset(row["preset"]), switches_in(row["switches"]))
    return Place(organization_id, member_id, role, policy)


def _organization(known: _Known, named: str | None) -> UUID:
    """The organization at hand: the one that is named, the token's, or the person's own account."""
    if named is not None:
        try:
            wanted = UUID(named)
        except ValueError as error:
            raise BadRequest(
                "X-Organization-Id is an organization's id.", code="invalid_organization_id"
            ) from error
        if known.token_at not in {None, wanted}:
            raise _no_organization(wanted)
        return wanted
    own = known.token_at or known.account_id
    if own is None:
        raise Forbidden(
            "Verify your e-mail address first: your account is made then. POST"
            " /api/v1/verifications sends the link again.",
            code="email_not_verified",
        )
    return own


def _check_scope(caller: Caller, scope: Scope | None) -> None:
    if caller.scopes is None:
        return
    if scope is None:
        raise Forbidden("No token can do this: sign in.", code="session_required")
    if not scope.is_in(caller.scopes):
        raise Forbidden(
            f"The token lacks the scope {scope.value}.",
            code="scope_missing",
            extra={"scope": scope.value},
        )


def _unknown(message: str) -> Unauthenticated:
    return Unauthenticated(
        message, code="not_signed_in", headers={"WWW-Authenticate": 'Bearer realm="tollgate"'}
    )


def _no_organization(organization_id: Any) -> NotFound:
    return NotFound(
        f"There is no organization {organization_id}, or you are not in it.",
        code="organization_not_found",
    )
