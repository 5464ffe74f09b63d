"""Who is calling: the organization, project, key and limits behind an API key, and its cached form.

Everything a call is attributed to comes from here and nothing from what the client sends. The
packed form travels through Redis between gateways of different releases, so its fields may only be
added at the end, each with a default.
"""

from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple, assert_never
from zoneinfo import ZoneInfo

import msgspec

from gateway.addresses import Ranges
from ledger.admission import Cap
from ledger.money import ZERO, Nanos

# Clocks of all zones in use differ from UTC by a multiple of this, so no day begins inside one.
_QUARTER_MS = 15 * 60 * 1000
_AHEAD_MAX = timedelta(hours=1)  # a gateway's clock that is no further ahead names the right one


class Period(StrEnum):
    """How often a budget starts anew, by the calendar of the organization's time zone."""

    ONCE = "once"
    DAILY = "daily"
    WEEKLY = "weekly"  # from Monday
    MONTHLY = "monthly"


class Budget(NamedTuple):
    """What may be spent in each period by a key, project or member."""

    id: str
    limit: Nanos
    period: Period


class Principal(NamedTuple):
    """Who is calling and what limits hold. `None` means no limit."""

    organization_id: str
    partition: int
    wallet: str
    project_id: str
    key_id: str
    member_id: str  # "" when the key is nobody's own
    version: int  # grows with every change of the key or its organization
    time_zone: str
    budgets: tuple[Budget, ...]
    rpm: int | None
    tpm: int | None
    concurrency: int | None
    models: frozenset[str] | None
    expires_at_ms: int | None
    is_suspended: bool  # the organization may not call for now
    allows_unpriced: bool  # models without a price pass at zero
    grace: Nanos = ZERO  # what it may use while Redis is away, over all gateways
    default_model: str | None = None  # of calls that name none
    networks: tuple[Ranges, ...] = ()  # its calls come from within each of them; (): anywhere
    keeps_content: bool = False  # what is said in its calls is kept

    def caps(self, now_ms: int) -> tuple[Cap, ...]:
        """The budgets as caps, each with its window of now and its neighbours."""
        if not self.budgets:
            return ()
        zone, quarter = self.time_zone, now_ms // _QUARTER_MS
        return tuple(
            [Cap(budget.id, budget.limit, _starts(budget.period, zone, quarter))
             for budget in self.budgets]
        )  # fmt: skip

    def may_use(self, model: str) -> bool:
        """Whether the key allows this model."""
        return self.models is None or model in self.models


class KnownKey(NamedTuple):
    """A key as Postgres knows it."""

    principal: Principal
    is_revoked: bool


class _Packed(msgspec.Struct, array_like=True, gc=False):
    """A principal as Redis holds it. Times are unix ms, money is nano-USD."""

    version: int
    organization_id: str
    partition: int
    wallet: str
    project_id: str
    key_id: str
    member_id: str
    time_zone: str
    budgets: list[tuple[str, int, Period]]
    rpm: int | None
    tpm: int | None
    concurrency: int | None
    models: list[str] | None
    expires_at_ms: int | None
    is_suspended: bool
    allows_unpriced: bool
    grace: int = 0
    default_model: str | None = None
    networks: tuple[tuple[str, ...], ...] = ()
    keeps_content: bool = False


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Packed).decode


def pack(who: Principal) -> bytes:
    """The bytes that Redis holds."""
    return _encode(
        _Packed(
            version=who.version,
            organization_id=who.organization_id,
            partition=who.partition,
            wallet=who.wallet,
            project_id=who.project_id,
            key_id=who.key_id,
            member_id=who.member_id,
            time_zone=who.time_zone,
            budgets=list(who.budgets),
            rpm=who.rpm,
            tpm=who.tpm,
            concurrency=who.concurrency,
            models=None if who.models is None else sorted(who.models),
            expires_at_ms=who.expires_at_ms,
            is_suspended=who.is_suspended,
            allows_unpriced=who.allows_unpriced,
            grace=who.grace,
            default_model=who.default_model,
            networks=who.networks,
            keeps_content=who.keeps_content,
        )
    )


def unpack(packed: bytes) -> Principal:
    """The principal of these bytes; `msgspec.MsgspecError` if they are none."""
    it = _decode(packed)
    return Principal(
        organization_id=it.organization_id,
        partition=it.partition,
        wallet=it.wallet,
        project_id=it.project_id,
        key_id=it.key_id,
        member_id=it.member_id,
        version=it.version,
        time_zone=it.time_zone,
        budgets=tuple(Budget(name, Nanos(limit), period) for name, limit, period in it.budgets),
        rpm=it.rpm,
        tpm=it.tpm,
        concurrency=it.concurrency,
        models=None if it.models is None else frozenset(it.models),
        expires_at_ms=it.expires_at_ms,
        is_suspended=it.is_suspended,
        allows_unpriced=it.allows_unpriced,
        grace=Nanos(it.grace),
        default_model=it.default_model,
        networks=it.networks,
        keeps_content=it.keeps_content,
    )


def window_starts(period: Period, time_zone: str, now_ms: int) -> tuple[int, ...]:
    """When windows begin around now, ascending, unix ms; (0,) if there is one that never ends.

    The last two are the window of now and the next one, and in its first hour the one before comes
    first: Redis chooses by its own clock, whichever way the gateway's is wrong.

    A day begins at the first instant of its date in the zone: the later end of the gap where a
    change of the clock skips midnight, the earlier midnight where it repeats it.
    """
    return _starts(period, time_zone, now_ms // _QUARTER_MS)


@lru_cache(maxsize=4096)  # a quarter of an hour of every period in every zone is about 1,800
def _starts(period: Period, time_zone: str, quarter: int) -> tuple[int, ...]:
    if period is Period.ONCE:
        return (0,)
    zone = ZoneInfo(time_zone)
    now = datetime.fromtimestamp(quarter * _QUARTER_MS / 1000, tz=UTC)
    days = [(now - ahead).astimezone(zone).date() for ahead in (_AHEAD_MAX, timedelta())]
    starts = {start for day in days for start in _bounds(period, day)}
    return tuple(_midnight_ms(start, zone) for start in sorted(starts))


def _bounds(period: Period, today: date) -> tuple[date, date]:
    match period:
        case Period.DAILY:
            return today, today + timedelta(days=1)
        case Period.WEEKLY:
            monday = today - timedelta(days=today.weekday())
            return monday, monday + timedelta(days=7)
        case Period.MONTHLY:
            first = today.replace(day=1)
            return first, (first + timedelta(days=31)).replace(day=1)
        case Period.ONCE:
            return date.min, date.max
        case _:
            assert_never(period)


def _midnight_ms(day: date, zone: ZoneInfo) -> int:
    # With fold=0 a midnight that does not exist is read with the offset before the gap, which is
    # exactly the instant of the change; one that occurs twice is its first occurrence.
    instant = datetime(day.year, day.month, day.day, tzinfo=zone, fold=0)
    return int(instant.timestamp()) * 1000
