"""Days of call logs: made, filled and looked at."""

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from ledger.book import Organization
from tests.ledger.deployment import Deployment

_LOG = """
    INSERT INTO call_log (call_id, organization_id, first_byte_us, status, attempts, stream, client,
                          flags)
    SELECT id, $2, 1, 200, 1, false, 'tests', $3 FROM unnest($1::uuid[]) AS u (id)
"""


async def today_of(deployment: Deployment) -> date:
    found = await deployment.pool.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
    assert isinstance(found, date)
    return found


def id_on(day: date, number: int) -> UUID:
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    return UUID(int=(int(noon.timestamp() * 1000) + number) << 80 | 7 << 76 | 2 << 62 | number)


async def days_of(deployment: Deployment, ago: int) -> None:
    today = await today_of(deployment)
    for days in range(ago + 1):
        await deployment.pool.execute(
            "SELECT make_day_partitions($1, 1)", today - timedelta(days=days)
        )


async def logged(
    deployment: Deployment, organization: Organization, day: date, number: int, *flags: str
) -> None:
    start = await deployment.pool.fetchval("SELECT count(*) FROM call_log")
    ids = [id_on(day, start + n) for n in range(number)]
    await deployment.pool.execute(_LOG, ids, UUID(organization.id), flags)


async def kept(deployment: Deployment, organization: Organization) -> int:
    found = await deployment.pool.fetchval(
        "SELECT count(*) FROM call_log WHERE organization_id = $1", UUID(organization.id)
    )
    assert isinstance(found, int)
    return found


async def has_day(deployment: Deployment, day: date) -> bool:
    table = f"call_log_standard_{day:%Y%m%d}"
    return await deployment.pool.fetchval("SELECT to_regclass($1)", table) is not None


async def filled(deployment: Deployment, *, days: int = 6, each: int = 1) -> Organization:
    """An organization that has logs of each of the last days."""
    acme, today = await deployment.organization(), await today_of(deployment)
    await days_of(deployment, days - 1)
    for ago in range(days):
        await logged(deployment, acme, today - timedelta(days=ago), each)
    return acme
