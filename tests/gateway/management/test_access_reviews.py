"""Each quarter owners and admins are asked who should still have access."""

import asyncio
import re
from datetime import UTC, datetime, timedelta

import pytest

from gateway.management.access_reviews import AccessReviews, quarter_of
from gateway.management.watch import Sight
from tests.gateway.management.office import Office
from tests.gateway.management.team import founded

ALL = Sight(None, None)
SUBJECT = "Who has access to Acme?"
QUARTER = timedelta(days=92)


async def asked(office: Office, email: str = "ada@example.com") -> int:
    return sum(mail["subject"] == SUBJECT for mail in await office.mails_to(email))


@pytest.mark.parametrize(
    ("now", "began", "name"),
    [
        ((2026, 1, 1), (2026, 1, 1), "2026-Q1"),
        ((2026, 3, 31), (2026, 1, 1), "2026-Q1"),
        ((2026, 4, 1), (2026, 4, 1), "2026-Q2"),
        ((2026, 12, 31), (2026, 10, 1), "2026-Q4"),
    ],
)
def test_quarters_are_those_of_the_calendar(
    now: tuple[int, int, int], began: tuple[int, int, int], name: str
) -> None:
    assert quarter_of(datetime(*now, tzinfo=UTC)) == (datetime(*began, tzinfo=UTC), name)


async def test_owners_and_admins_are_asked_once_in_a_quarter(office: Office) -> None:
    team = await founded(office)
    await team.cast()
    await AccessReviews(office.desk).look(ALL)
    assert await asked(office) == 0, "it was made in this quarter"
    office.clock.ahead += QUARTER
    await asyncio.gather(*(AccessReviews(office.desk).look(ALL) for _ in range(5)))
    office.clock.ahead += timedelta(hours=2)
    await AccessReviews(office.desk).look(ALL)
    people = ("ada@example.com", "owner@example.com", "admin@example.com", "member@example.com")
    assert [await asked(office, one) for one in people] == [1, 1, 1, 0]
    mail = (await office.mails_to("ada@example.com"))[-1]
    assert "member@example.com (member), joined" in mail["text"]
    assert re.search(
        r"- ada@example.com \(owner\), joined 20\S+, last active 20\S+\n", mail["text"]
    )
    office.clock.ahead += QUARTER
    await AccessReviews(office.desk).look(ALL)
    assert await asked(office) == 2


async def test_who_is_alone_or_wants_no_reviews_is_not_asked(office: Office) -> None:
    await founded(office)
    other = await founded(office, email="bob@example.com")
    await other.joined("eve@example.com")
    await other.owner.patch("/alerts/settings", {"access_reviews": False})
    office.clock.ahead += QUARTER
    await AccessReviews(office.desk).look(ALL)
    assert [await asked(office, one) for one in ("ada@example.com", "bob@example.com")] == [0, 0]


async def test_one_observer_looks_once_in_an_hour(office: Office) -> None:
    observer, team = AccessReviews(office.desk), await founded(office)
    await team.joined("eve@example.com")
    await observer.look(ALL)
    await office.pool.execute("UPDATE organization SET created_at = now() - interval '1 year'")
    await observer.look(ALL)
    assert await asked(office) == 0
    office.clock.ahead += timedelta(hours=1)
    await observer.look(ALL)
    assert await asked(office) == 1
