"""An organization's policy over HTTP: its preset, its switches, and what follows from both."""

from typing import Any
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from gateway.display import DisplayUnit
from gateway.management.audit import note
from gateway.management.desk import Desk
from gateway.management.guard import switches_in
from gateway.policy import (
    ActivityScope,
    Audience,
    KeysOfLeavers,
    Permission,
    Preset,
    Role,
    SecretVisibility,
    Switches,
    policy_of,
)
from gateway.rest.caller import Scope, member
from gateway.rest.problem import ChangedMeanwhile
from gateway.rest.route import Answer, Asked, Nothing, Route

_encode = msgspec.json.encode
_ONE = "SELECT preset, switches, version FROM organization WHERE id = $1"
_SET_POLICY = """
    UPDATE organization SET preset = $2, switches = $3, version = version + 1
    WHERE id = $1 AND deleted_at IS NULL AND ($4::bigint IS NULL OR version = $4)
    RETURNING id
"""


class PolicyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Another preset, other switches; what is left out stays. `switches` replaces all of them."""

    preset: Preset | UnsetType = UNSET
    switches: Switches | UnsetType = UNSET


class PolicyView(msgspec.Struct, frozen=True, kw_only=True):
    """What holds: the preset as its switches leave it."""

    preset: Preset
    switches: Switches
    audiences: dict[Permission, Audience]
    labels: dict[Role, str]
    secret_visibility: SecretVisibility
    activity_scope: ActivityScope
    keys_of_leavers: KeysOfLeavers
    transfers_self_service: bool
    owners_need_second_factor: bool
    display_unit: DisplayUnit
    version: int


async def get(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """What each role may do here."""
    view = await _policy(desk, asked.caller.place.organization_id)
    return Answer(view, view.version)


async def change(desk: Desk, asked: Asked[Nothing, PolicyChange]) -> Answer:
    """Choose another preset, or other switches."""
    place, wanted = asked.caller.place, asked.body
    before = await _policy(desk, place.organization_id)
    preset = before.preset if wanted.preset is UNSET else wanted.preset
    switches = before.switches if wanted.switches is UNSET else wanted.switches
    async with desk.pool.acquire() as connection, connection.transaction():
        expected = asked.if_match if asked.if_match is not None else before.version
        done = await connection.fetchval(
            _SET_POLICY,
            place.organization_id,
            preset,
            msgspec.json.encode(switches).decode(),
            expected,
        )
        if done is None:
            raise ChangedMeanwhile
        said = {"preset": before.preset, "switches": msgspec.to_builtins(before.switches)}
        now_said = {"preset": preset, "switches": msgspec.to_builtins(switches)}
        await note(connection, asked, "policy.update", before=said, after=now_said)
    view = await _policy(desk, place.organization_id)
    return Answer(view, view.version)


async def _policy(desk: Desk, organization_id: UUID) -> PolicyView:
    row = await desk.pool.fetchrow(_ONE, organization_id)
    assert row is not None, "the guard has seen it"
    preset, switches = Preset(row["preset"]), switches_in(row["switches"])
    policy = policy_of(preset, switches)
    said: dict[str, Any] = {**policy._asdict(), "display_unit": desk.unit_of(policy)}
    return PolicyView(preset=preset, switches=switches, version=row["version"], **said)


ROUTES = (
    Route(
        method="GET",
        path="/policy",
        name="policy.get",
        says="What each role may do here.",
        access=member(Permission.ORGANIZATION_READ, Scope.ORGANIZATIONS_READ),
        handle=get,
        answers=PolicyView,
    ),
    Route(
        method="PATCH",
        path="/policy",
        name="policy.change",
        says="Choose another preset, or other switches.",
        access=member(Permission.POLICY_UPDATE, None),
        handle=change,
        body=PolicyChange,
        answers=PolicyView,
    ),
)
