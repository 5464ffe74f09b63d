"""What an organization wants to be told of: balances, shares of budgets, odd spending, reviews."""

from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.display import Display, display
from gateway.errors import BadRequest
from gateway.management.alerts import READ, WRITE, AlertKind
from gateway.management.audit import note
from gateway.management.desk import Desk
from gateway.management.low_balances import ARM, defaults
from gateway.rest.problem import ChangedMeanwhile
from gateway.rest.route import Answer, Asked, Nothing, Route
from ledger.money import NANOS_MAX, NANOS_PER_USD
from ledger.postgres import Connection

# Of who chose none, as the columns' defaults.
PERCENTS = (80, 95, 100)
ANOMALY_MIN = 10 * NANOS_PER_USD

Level = Annotated[int, Meta(ge=0, le=NANOS_MAX, description="nano-USD")]
Percent = Annotated[int, Meta(ge=1, le=100)]

_ONE = """
    SELECT low_nanos, critical_nanos, thresholds, budget_percents, anomalies, anomaly_min_nanos,
           reviews, version
    FROM alert_settings WHERE organization_id = $1
"""
_MAKE = "INSERT INTO alert_settings (organization_id) VALUES ($1) ON CONFLICT DO NOTHING"
_SET = """
    UPDATE alert_settings
    SET low_nanos = $2, critical_nanos = $3, thresholds = $4, budget_percents = $5, anomalies = $6,
        anomaly_min_nanos = $7, reviews = $8, version = version + 1
    WHERE organization_id = $1 AND version = $9
    RETURNING version
"""


class AlertSettingsChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be changed; what is left out stays."""

    low_nanos: Level | UnsetType | None = UNSET  # null: the installation's default
    critical_nanos: Level | UnsetType | None = UNSET
    thresholds_nanos: Annotated[list[Level], Meta(max_length=10)] | UnsetType = UNSET
    budget_percents: Annotated[list[Percent], Meta(max_length=10)] | UnsetType = UNSET
    spend_anomalies: bool | UnsetType = UNSET
    anomaly_min_nanos: Level | UnsetType = UNSET
    access_reviews: bool | UnsetType = UNSET


class AlertSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of what owners and admins are told."""

    low_nanos: int  # at most once in 72 hours
    critical_nanos: int  # at most once in 24 hours
    is_low_default: bool
    is_critical_default: bool
    thresholds_nanos: list[int]  # of the organization's own choice, each at most once in 24 hours
    budget_percents: list[int]  # of every budget, each once in its period
    spend_anomalies: bool  # a day that costs far more than usual, at most once a day
    anomaly_min_nanos: int  # less in a day is never odd
    access_reviews: bool  # each quarter, who has access
    display: Display
    version: int


async def get(desk: Desk, asked: Asked[Nothing, Nothing]) -> Answer:
    """Of what owners and admins are told."""
    view = await _one(desk, asked)
    return Answer(view, view.version)


async def change(desk: Desk, asked: Asked[Nothing, AlertSettingsChange]) -> Answer:
    """Choose what is told. A level set above the balance warns once that was above it."""
    organization_id = asked.caller.place.organization_id
    before = await _one(desk, asked)
    stored = {
        **msgspec.structs.asdict(before),
        "low_nanos": None if before.is_low_default else before.low_nanos,
        "critical_nanos": None if before.is_critical_default else before.critical_nanos,
    }
    changes = {
        name: sorted(set(value)) if isinstance(value, list) else value
        for name, value in msgspec.structs.asdict(asked.body).items()
        if value is not UNSET
    }
    after = {**stored, **changes}
    levels = _levels(desk, after)
    if levels[AlertKind.BALANCE_CRITICAL, 0] > levels[AlertKind.BALANCE_LOW, 0]:
        raise BadRequest(
            "The critical level is not above the low one.",
            code="invalid_levels",
            param="critical_nanos",
        )
    async with desk.pool.acquire() as connection, connection.transaction():
        await connection.execute(_MAKE, organization_id)
        expected = before.version if asked.if_match is None else asked.if_match
        done = await connection.fetchval(
            _SET,
            organization_id,
            after["low_nanos"],
            after["critical_nanos"],
            after["thresholds_nanos"],
            after["budget_percents"],
            after["spend_anomalies"],
            after["anomaly_min_nanos"],
            after["access_reviews"],
            expected,
        )
        if done is None:
            raise ChangedMeanwhile
        was = _levels(desk, stored)
        new = [(*name, at) for name, at in levels.items() if was.get(name) != at]
        await _arm(connection, organization_id, new)
        said = {name: stored[name] for name in changes}
        await note(connection, asked, "alerts.update", before=said, after=changes)
    view = await _one(desk, asked)
    return Answer(view, view.version)


def _levels(desk: Desk, said: dict[str, Any]) -> dict[tuple[AlertKind, int], int]:
    """Every level by its name in `balance_level`."""
    low, critical = defaults(desk.config.credits)
    own = {(AlertKind.BALANCE_THRESHOLD, at): at for at in said["thresholds_nanos"]}
    return {
        (AlertKind.BALANCE_LOW, 0): low if said["low_nanos"] is None else said["low_nanos"],
        (AlertKind.BALANCE_CRITICAL, 0): (
            critical if said["critical_nanos"] is None else said["critical_nanos"]
        ),
        **own,
    }


async def _arm(
    connection: Connection, organization_id: UUID, levels: Sequence[tuple[AlertKind, int, int]]
) -> None:
    await connection.execute(
        ARM,
        organization_id,
        [kind.value for kind, _, _ in levels],
        [own for _, own, _ in levels],
        [at for _, _, at in levels],
    )


async def _one(desk: Desk, asked: Asked[Any, Any]) -> AlertSettings:
    row = await desk.pool.fetchrow(_ONE, asked.caller.place.organization_id)
    said = dict(row) if row is not None else {}
    low, critical = defaults(desk.config.credits)
    own_low, own_critical = said.get("low_nanos"), said.get("critical_nanos")
    low = low if own_low is None else own_low
    critical = critical if own_critical is None else own_critical
    anomaly_min = said.get("anomaly_min_nanos", ANOMALY_MIN)
    unit = desk.unit_of(asked.caller.place.policy)
    return AlertSettings(
        low_nanos=low,
        critical_nanos=critical,
        is_low_default=own_low is None,
        is_critical_default=own_critical is None,
        thresholds_nanos=said.get("thresholds", []),
        budget_percents=said.get("budget_percents", [*PERCENTS]),
        spend_anomalies=said.get("anomalies", True),
        anomaly_min_nanos=anomaly_min,
        access_reviews=said.get("reviews", True),
        display=display(unit, has={"low": low, "critical": critical, "anomaly_min": anomaly_min}),
        version=said.get("version", 1),
    )


ROUTES = (
    Route(
        method="GET",
        path="/alerts/settings",
        name="alerts.settings",
        says="Of what owners and admins are told.",
        access=READ,
        handle=get,
        answers=AlertSettings,
    ),
    Route(
        method="PATCH",
        path="/alerts/settings",
        name="alerts.change",
        says="Choose of what they are told.",
        access=WRITE,
        handle=change,
        body=AlertSettingsChange,
        answers=AlertSettings,
    ),
)
