"""Who asks, and what a route wants of them. Pure."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from gateway.policy import Permission, Policy, Role


class Scope(StrEnum):
    """What a token may be made for. Sessions have them all; writing includes reading."""

    PROFILE_READ = "profile:read"
    PROFILE_WRITE = "profile:write"
    ORGANIZATIONS_READ = "organizations:read"
    ORGANIZATIONS_WRITE = "organizations:write"
    MEMBERS_READ = "members:read"
    MEMBERS_WRITE = "members:write"
    PROJECTS_READ = "projects:read"
    PROJECTS_WRITE = "projects:write"
    KEYS_READ = "keys:read"
    KEYS_WRITE = "keys:write"
    BILLING_READ = "billing:read"
    BILLING_WRITE = "billing:write"
    USAGE_READ = "usage:read"
    AUDIT_READ = "audit:read"
    ALERTS_READ = "alerts:read"
    ALERTS_WRITE = "alerts:write"

    def is_in(self, scopes: frozenset["Scope"]) -> bool:
        """Whether a token with these scopes has this one."""
        return self in scopes or any(
            scope.value == self.value.replace(":read", ":write") for scope in scopes
        )


class Who(StrEnum):
    """The kinds of caller that a route is for."""

    ANYBODY = "anybody"  # nobody need say who they are
    PERSON = "person"  # somebody signed in, wherever they are
    SESSION = "session"  # ... and not by a token: nothing that gives rights may be done by one
    MEMBER = "member"  # somebody who has the permission in the organization at hand
    OPERATOR = "operator"  # who runs the installation


class Access(NamedTuple):
    """Who may call a route."""

    who: Who
    permission: Permission | None = None  # of a member; None: every member has it
    scope: Scope | None = None  # of a token; None: no token will do


ANYBODY = Access(Who.ANYBODY)
SESSION = Access(Who.SESSION)
OPERATOR = Access(Who.OPERATOR)


def person(scope: Scope) -> Access:
    """Somebody signed in."""
    return Access(Who.PERSON, scope=scope)


def member(permission: Permission | None, scope: Scope | None) -> Access:
    """Somebody who has this permission in the organization at hand.

    No permission: whoever is in it, whatever its policy says. No scope: no token.
    """
    return Access(Who.MEMBER, permission, scope)


class Place(NamedTuple):
    """The organization at hand and what the caller is in it."""

    organization_id: UUID
    member_id: UUID | None  # None: a token of the organization's own
    role: Role
    policy: Policy
    grants: frozenset[str] = frozenset()  # permissions that they have beyond their role

    def allows(self, permission: Permission) -> bool:
        """Whether the caller has it here."""
        return permission in self.grants or self.policy.allows(self.role, permission)


class Caller(NamedTuple):
    """Who asks."""

    actor: str  # as the audit log names them
    address: str  # where the request came from
    person_id: UUID | None = None
    session_id: UUID | None = None
    is_operator: bool = False
    scopes: frozenset[Scope] | None = None  # None: no token, so everything
    at: Place | None = None

    @property
    def place(self) -> Place:
        """Where they are; only for routes that are for members."""
        assert self.at is not None, "the guard lets nobody else in"
        return self.at

    @property
    def person(self) -> UUID:
        """Who they are; only for routes that are for people."""
        assert self.person_id is not None, "the guard lets nobody else in"
        return self.person_id


class Knock(NamedTuple):
    """What a request shows of who sends it."""

    address: str
    agent: str
    authorization: str | None
    cookie: str | None  # the session's
    csrf: str | None
    organization: str | None  # X-Organization-Id
    path: Mapping[str, str]
