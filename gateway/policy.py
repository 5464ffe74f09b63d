"""What an organization lets each of its roles do: permissions, presets, switches. Pure.

A preset is a table of audiences; a switch replaces one of its cells, or one of the other choices.
The four presets are the four ways of working that the product is sold for; no code asks which of
them an organization has, only what its policy says.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec

from gateway.display import CREDITS, USD, DisplayUnit


class Role(StrEnum):
    """What a member is. Each may do all that the one after it may."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"


class Audience(StrEnum):
    """Whom a permission is for."""

    OWNERS = "owners"
    ADMINS = "admins"  # and owners
    MEMBERS = "members"  # everybody


class Permission(StrEnum):
    """What a route may want of who calls it."""

    ORGANIZATION_READ = "organization.read"
    ORGANIZATION_UPDATE = "organization.update"
    ORGANIZATION_DELETE = "organization.delete"
    POLICY_UPDATE = "policy.update"
    MEMBER_READ = "member.read"
    MEMBER_INVITE = "member.invite"
    MEMBER_REMOVE = "member.remove"
    MEMBER_ROLE = "member.role"  # up to admin; only owners make owners, whatever is set
    MEMBER_BUDGET = "member.budget"  # what each may spend
    PROJECT_READ = "project.read"
    PROJECT_MANAGE = "project.manage"
    KEY_READ = "key.read"  # of all keys, for all may use them; never a secret
    KEY_CREATE = "key.create"  # and to manage one's own
    KEY_MANAGE = "key.manage"  # everybody's
    BILLING_READ = "billing.read"
    BILLING_PURCHASE = "billing.purchase"
    BILLING_MANAGE = "billing.manage"  # the organization's methods, contacts, invoicing settings
    AUTO_TOP_UP_MANAGE = "auto_top_up.manage"
    USAGE_READ = "usage.read"
    EXPORT_CREATE = "export.create"
    PRIVACY_UPDATE = "privacy.update"
    CONTENT_READ = "content.read"  # what was said in calls, where it is kept
    PROVIDER_KEY_MANAGE = "provider_key.manage"
    AUDIT_READ = "audit.read"
    ALERT_MANAGE = "alert.manage"  # what is warned of, and which programs are told
    TOKEN_MANAGE = "token.manage"  # noqa: S105 - the name of a permission


class Grant(StrEnum):
    """What one member may be given beyond their role."""

    KEY_CREATE = Permission.KEY_CREATE.value
    KEY_MANAGE = Permission.KEY_MANAGE.value


class Preset(StrEnum):
    """Who decides and who pays, as a whole."""

    STUDIO = "studio"  # owners and admins run it, members use it
    POOLED = "pooled"  # two roles; members make their own keys
    OPEN_TEAM = "open-team"  # everybody sees the bill and may pay it
    PLATFORM = "platform"  # owners pay, developers build


class SecretVisibility(StrEnum):
    """Who may see the secret of a key once it is made."""

    ONCE = "once"  # nobody: it was shown to who made it
    MEMBERS = "members"  # each member reveals a secret of their own


class ActivityScope(StrEnum):
    """Whose calls a member sees, metadata only."""

    OWN = "own"
    ORGANIZATION = "organization"


class KeysOfLeavers(StrEnum):
    """What becomes of the keys of a member who goes."""

    END = "end"
    HAND_OVER = "hand_over"  # to who removed them; of one who left, to the oldest owner


Label = Annotated[str, msgspec.Meta(min_length=1, max_length=40, pattern=r"^\S(.*\S)?$")]


class Switches(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What differs from the preset; what is left out is as the preset has it."""

    permissions: dict[Permission, Audience] = {}
    labels: dict[Role, Label] = {}
    secret_visibility: SecretVisibility | None = None
    activity_scope: ActivityScope | None = None
    keys_of_leavers: KeysOfLeavers | None = None
    transfers_self_service: bool | None = None  # personal credits to the organization
    owners_need_second_factor: bool | None = None
    display_unit: DisplayUnit | None = None  # in which people read their money


class Policy(NamedTuple):
    """What holds in an organization."""

    audiences: Mapping[Permission, Audience]
    labels: Mapping[Role, str]
    secret_visibility: SecretVisibility
    activity_scope: ActivityScope
    keys_of_leavers: KeysOfLeavers
    transfers_self_service: bool
    owners_need_second_factor: bool
    display_unit: DisplayUnit | None  # None: the installation's own

    def allows(self, role: Role, permission: Permission) -> bool:
        """Whether a member of this role may."""
        return role in _IN[self.audiences[permission]]


_IN = {
    Audience.OWNERS: frozenset({Role.OWNER}),
    Audience.ADMINS: frozenset({Role.OWNER, Role.ADMIN}),
    Audience.MEMBERS: frozenset(Role),
}
_OWNERS, _ADMINS, _MEMBERS = Audience.OWNERS, Audience.ADMINS, Audience.MEMBERS
_P = Permission

# What all presets agree on.
_ALL: Mapping[Permission, Audience] = {
    _P.ORGANIZATION_READ: _MEMBERS,
    _P.ORGANIZATION_UPDATE: _ADMINS,
    _P.ORGANIZATION_DELETE: _OWNERS,
    _P.POLICY_UPDATE: _OWNERS,
    _P.MEMBER_READ: _MEMBERS,
    _P.MEMBER_INVITE: _ADMINS,
    _P.MEMBER_REMOVE: _ADMINS,
    _P.MEMBER_ROLE: _ADMINS,
    _P.MEMBER_BUDGET: _ADMINS,
    _P.PROJECT_READ: _MEMBERS,
    _P.PROJECT_MANAGE: _ADMINS,
    _P.KEY_READ: _MEMBERS,
    _P.KEY_CREATE: _ADMINS,
    _P.KEY_MANAGE: _ADMINS,
    _P.BILLING_READ: _ADMINS,
    _P.BILLING_PURCHASE: _ADMINS,
    _P.BILLING_MANAGE: _ADMINS,
    _P.AUTO_TOP_UP_MANAGE: _ADMINS,
    _P.USAGE_READ: _MEMBERS,
    _P.EXPORT_CREATE: _ADMINS,
    _P.PRIVACY_UPDATE: _ADMINS,
    _P.CONTENT_READ: _ADMINS,
    _P.PROVIDER_KEY_MANAGE: _OWNERS,
    _P.AUDIT_READ: _ADMINS,
    _P.ALERT_MANAGE: _ADMINS,
    _P.TOKEN_MANAGE: _ADMINS,
}
_NAMES = {Role.OWNER: "Owner", Role.ADMIN: "Admin", Role.MEMBER: "Member"}


def _preset(
    audiences: Mapping[Permission, Audience], labels: Mapping[Role, str] = _NAMES
) -> Policy:
    return Policy(
        audiences={**_ALL, **audiences},
        labels=labels,
        secret_visibility=SecretVisibility.ONCE,
        activity_scope=ActivityScope.ORGANIZATION,
        keys_of_leavers=KeysOfLeavers.END,
        transfers_self_service=False,
        owners_need_second_factor=False,
        display_unit=USD,
    )


PRESETS: Mapping[Preset, Policy] = {
    Preset.STUDIO: _preset({_P.EXPORT_CREATE: _MEMBERS})._replace(
        secret_visibility=SecretVisibility.MEMBERS, display_unit=None
    ),
    Preset.POOLED: _preset(
        {_P.ORGANIZATION_DELETE: _ADMINS, _P.POLICY_UPDATE: _ADMINS, _P.KEY_CREATE: _MEMBERS},
        # Two roles: whether somebody is owner or admin is nothing that its people see.
        {Role.OWNER: "Admin", Role.ADMIN: "Admin", Role.MEMBER: "Member"},
    ),
    Preset.OPEN_TEAM: _preset(
        {_P.BILLING_READ: _MEMBERS, _P.BILLING_PURCHASE: _MEMBERS, _P.EXPORT_CREATE: _MEMBERS}
    ),
    Preset.PLATFORM: _preset(
        {
            _P.ORGANIZATION_UPDATE: _OWNERS,
            _P.MEMBER_INVITE: _OWNERS,
            _P.MEMBER_REMOVE: _OWNERS,
            _P.MEMBER_ROLE: _OWNERS,
            _P.MEMBER_BUDGET: _OWNERS,
            _P.KEY_CREATE: _MEMBERS,
            _P.BILLING_READ: _OWNERS,
            _P.BILLING_PURCHASE: _OWNERS,
            _P.BILLING_MANAGE: _OWNERS,
            _P.AUTO_TOP_UP_MANAGE: _OWNERS,
            _P.PRIVACY_UPDATE: _OWNERS,
            _P.CONTENT_READ: _OWNERS,
        },
        {**_NAMES, Role.MEMBER: "Developer"},
    )._replace(display_unit=CREDITS),
}


def policy_of(preset: Preset, switches: Switches) -> Policy:
    """The preset as its switches leave it."""
    policy = PRESETS[preset]
    return Policy(
        audiences={**policy.audiences, **switches.permissions},
        labels={**policy.labels, **switches.labels},
        secret_visibility=switches.secret_visibility or policy.secret_visibility,
        activity_scope=switches.activity_scope or policy.activity_scope,
        keys_of_leavers=switches.keys_of_leavers or policy.keys_of_leavers,
        transfers_self_service=_either(
            switches.transfers_self_service, policy.transfers_self_service
        ),
        owners_need_second_factor=_either(
            switches.owners_need_second_factor, policy.owners_need_second_factor
        ),
        display_unit=switches.display_unit or policy.display_unit,
    )


def _either(switch: bool | None, preset: bool) -> bool:  # noqa: FBT001 - what it chooses from
    return preset if switch is None else switch


def may_give(granter: Role, *, before: Role | None, after: Role | None) -> bool:
    """Whether somebody of this role may change another's from `before` to `after`; None: no member.

    Only owners make owners, and only owners unmake them.
    """
    return granter is Role.OWNER or Role.OWNER not in (before, after)
