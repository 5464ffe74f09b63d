"""API keys as they are said over HTTP: what a new one may do, what is changed, what is shown."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.display import Display
from gateway.management import api_keys
from gateway.management.budgets import Money
from gateway.management.ip_ranges import IpRanges
from gateway.management.tenants import Description
from gateway.management.tenants import OrganizationName as KeyName
from gateway.principal import Period
from gateway.rest.cursor import Paged

PerMinute = Annotated[int, Meta(ge=1, le=2**31 - 1)]
ModelName = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
Models = Annotated[list[ModelName], Meta(min_length=1, max_length=api_keys.MODELS_MAX)]
Moment = Annotated[datetime, Meta(tz=True)]


class KeyState(StrEnum):
    """Whether a key works."""

    ACTIVE = "active"
    DISABLED = "disabled"  # until it is enabled again
    EXPIRED = "expired"
    REVOKED = "revoked"  # for ever


class NewApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a new key may do. null: without that limit; a budget and its period come together."""

    name: KeyName
    description: Description = ""
    project_id: UUID | None = None  # null: the default project
    models: Models | None = None  # null: every model
    default_model: ModelName | None = None  # of calls that name none, or "default"
    ip_ranges: IpRanges | None = None  # where calls may come from; null: anywhere
    expires_at: Moment | None = None
    budget_nanos: Money | None = None
    budget_period: Period | None = None
    rpm: PerMinute | None = None
    tpm: PerMinute | None = None
    concurrency: PerMinute | None = None


class ApiKeyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be changed; what is left out stays, null ends a limit."""

    name: KeyName | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    models: Models | UnsetType | None = UNSET
    default_model: ModelName | UnsetType | None = UNSET
    ip_ranges: IpRanges | UnsetType | None = UNSET
    expires_at: Moment | UnsetType | None = UNSET
    budget_nanos: Money | UnsetType | None = UNSET
    budget_period: Period | UnsetType | None = UNSET
    rpm: PerMinute | UnsetType | None = UNSET
    tpm: PerMinute | UnsetType | None = UNSET
    concurrency: PerMinute | UnsetType | None = UNSET


class KeysWanted(Paged, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which keys are listed."""

    project_id: UUID | None = None  # null: of every project
    revoked: bool = False  # those that are revoked, too


class ApiKeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its secret."""

    id: UUID
    name: str
    description: str
    project_id: UUID
    project: str
    member_id: UUID | None  # who made it; null: nobody who is a member
    maker: str | None  # their e-mail address
    last4: str  # of its secret
    state: KeyState
    models: list[str] | None
    default_model: str | None
    ip_ranges: list[str] | None
    budget_nanos: int | None
    budget_period: Period | None
    rpm: int | None
    tpm: int | None
    concurrency: int | None
    expires_at: datetime | None
    disabled_at: datetime | None
    disabled_by: UUID | None  # the member
    former_until: datetime | None  # its secret before the rotation works until then
    revoked_at: datetime | None
    created_at: datetime
    version: int
    display: Display


class NewKeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A key with a secret just made, which is shown this once."""

    key: ApiKeyView
    secret: str
