"""Messages reach webhooks signed and once, are tried again for days, and follow no redirect."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from standardwebhooks import WebhookVerificationError

from gateway.management.alerts import Alert, AlertKind, give
from gateway.management.deliveries import PAUSES, Messenger
from gateway.notify import Notifier
from tests.gateway.management.office import Office, open_office
from tests.gateway.management.receiver import Receiver, receiving
from tests.gateway.management.team import Team, founded

FACTS = {"balance_nanos": 9, "threshold_nanos": 10}


@pytest.fixture
async def office(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Office]:
    changes = "management: {private_webhooks: true}"
    async with open_office(postgres_url, redis_url, tmp_path, changes=changes) as opened:
        yield opened


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as opened:
        yield opened


class Post:
    """An organization with a webhook at a receiver."""

    def __init__(self, office: Office, team: Team, made: dict[str, Any]) -> None:
        self.office, self.team = office, team
        self.secret, self.id = made["secret"], made["webhook"]["id"]
        self.messenger = Messenger(office.desk, Notifier(allows_private=True))

    async def alerts(self, *subjects: str) -> None:
        alerts = [
            Alert(UUID(self.team.id), AlertKind.BALANCE_LOW, one, FACTS, None) for one in subjects
        ]
        async with self.office.pool.acquire() as connection, connection.transaction():
            await give(connection, self.office.desk, alerts)

    async def deliveries(self) -> list[dict[str, Any]]:
        got = await self.team.owner.get(f"/webhooks/{self.id}/deliveries")
        return list(got.body["data"])

    async def webhook(self) -> dict[str, Any]:
        return dict((await self.team.owner.get(f"/webhooks/{self.id}")).body)


@pytest.fixture
async def post(office: Office, receiver: Receiver) -> Post:
    team = await founded(office)
    made = await team.owner.post("/webhooks", {"url": receiver.url})
    assert made.status == 201, made
    # Receivers refuse messages of another time; the limits of rates go on from where they are.
    office.clock.ahead_s += office.clock.ahead.total_seconds()
    office.clock.ahead = timedelta()
    return Post(office, team, made.body)


async def test_a_message_arrives_signed_and_once(post: Post, receiver: Receiver) -> None:
    await post.alerts("one")
    assert await post.messenger.deliver_some() == 1
    assert await post.messenger.deliver_some() == 0
    (message,) = receiver.verified(post.secret)
    (alert,) = (await post.team.owner.get("/alerts")).body["data"]
    assert message["type"] == "balance.low"
    assert message["data"] == {"id": alert["id"], "organization_id": post.team.id, **FACTS}
    with pytest.raises(WebhookVerificationError):
        receiver.verified("whsec_" + "A" * 44)
    (delivery,) = await post.deliveries()
    assert (delivery["state"], delivery["status"], delivery["tries"]) == ("delivered", 200, 1)
    assert (await post.webhook())["succeeded_at"] is not None


async def test_after_an_error_it_is_sent_again_under_the_same_id(
    post: Post, receiver: Receiver
) -> None:
    receiver.answers = [500, 503]
    await post.alerts("one")
    assert await post.messenger.deliver_some() == 0
    assert await post.messenger.deliver_some() == 0, "not at once"
    (delivery,) = await post.deliveries()
    assert (delivery["state"], delivery["error"]) == ("waiting", "it answered 500")
    post.office.clock.ahead += PAUSES[0]
    assert await post.messenger.deliver_some() == 0
    post.office.clock.ahead += PAUSES[1] - timedelta(seconds=6)
    assert await post.messenger.deliver_some() == 0
    post.office.clock.ahead += timedelta(seconds=6)
    assert await post.messenger.deliver_some() == 1
    assert len(receiver.got) == 3
    assert len(set(receiver.ids)) == 1
    assert (await post.webhook())["failing_since"] is None


async def test_a_redirect_is_a_failure_and_is_not_followed(post: Post, receiver: Receiver) -> None:
    receiver.answers = [307]
    await post.alerts("one")
    assert await post.messenger.deliver_some() == 0
    assert len(receiver.got) == 1
    (delivery,) = await post.deliveries()
    assert delivery["error"] == "it answered 307; redirects are not followed"


async def test_a_name_that_leads_inside_gets_nothing_where_that_is_not_allowed(
    post: Post, receiver: Receiver
) -> None:
    port = receiver.url.rpartition(":")[2]
    path = f"/webhooks/{post.id}"
    moved = await post.team.owner.patch(path, {"url": f"https://localhost:{port}/hook"})
    assert moved.status == 200
    await post.alerts("one")
    messenger = Messenger(post.office.desk, Notifier(allows_private=False))
    assert await messenger.deliver_some() == 0
    assert not receiver.got
    (delivery,) = await post.deliveries()
    assert delivery["error"] == "its name leads to an address that is not public"


async def test_many_processes_send_each_message_once(post: Post, receiver: Receiver) -> None:
    await post.alerts(*(str(number) for number in range(12)))
    notifier = Notifier(allows_private=True)
    messengers = [Messenger(post.office.desk, notifier) for _ in range(4)]
    for _ in range(12):
        await asyncio.gather(*(one.deliver_some() for one in messengers))
    assert len(receiver.got) == len(set(receiver.ids)) == 12


async def test_a_message_whose_process_died_is_sent_by_the_next(
    post: Post, receiver: Receiver
) -> None:
    await post.alerts("one")
    assert await post.messenger._take() is not None, "and then it dies"
    other = Messenger(post.office.desk, Notifier(allows_private=True))
    assert await other.deliver_some() == 0
    post.office.clock.ahead += timedelta(minutes=1, seconds=1)
    assert await other.deliver_some() == 1
    assert len(receiver.got) == 1


async def test_a_webhook_that_takes_nothing_for_days_is_disabled_and_told_of(
    post: Post, receiver: Receiver
) -> None:
    receiver.answers = [500] * 50
    await post.alerts("one")
    for pause in (*PAUSES, timedelta()):
        assert (await post.webhook())["is_enabled"]
        await post.messenger.deliver_some()
        post.office.clock.ahead += pause
    found = await post.webhook()
    assert (found["is_enabled"], found["disabled_why"]) == (
        False,
        "a message was tried 10 times: it answered 500",
    )
    assert len(receiver.got) == len(PAUSES) + 1
    mail = (await post.office.mails_to("ada@example.com"))[-1]
    assert mail["subject"] == "A webhook of Acme was disabled"
    assert receiver.url in mail["text"]
    await post.alerts("two")
    assert await post.messenger.deliver_some() == 0
    enabled = await post.team.owner.patch(f"/webhooks/{post.id}", {"is_enabled": True})
    assert (enabled.status, enabled.body["is_enabled"]) == (200, True)
    receiver.answers = []
    await post.alerts("three")
    assert await post.messenger.deliver_some() == 1


async def test_a_receiver_that_is_gone_for_ever_is_disabled_at_once(
    post: Post, receiver: Receiver
) -> None:
    receiver.answers = [410]
    await post.alerts("one", "two")
    await post.messenger.deliver_some()
    assert not (await post.webhook())["is_enabled"]
    assert {one["state"] for one in await post.deliveries()} == {"failed"}


async def test_after_a_rotation_both_secrets_sign_for_a_day(post: Post, receiver: Receiver) -> None:
    rotated = await post.team.owner.post(f"/webhooks/{post.id}/rotation")
    assert rotated.status == 200, rotated
    new = rotated.body["secret"]
    assert new != post.secret
    await post.alerts("one")
    await post.messenger.deliver_some()
    assert receiver.verified(new) == receiver.verified(post.secret)

    await post.office.pool.execute("UPDATE webhook SET former_until = now() - interval '1 second'")
    await post.alerts("two")
    await post.messenger.deliver_some()
    assert len(receiver.verified(new)) == 2
    with pytest.raises(WebhookVerificationError):
        receiver.verified(post.secret)


async def test_it_runs_by_itself(post: Post, receiver: Receiver) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(post.messenger.run(), name="messenger")
        await post.alerts("one")
        async with asyncio.timeout(10):
            while not receiver.got:
                await asyncio.sleep(0.01)
        task.cancel()


async def test_what_ended_is_forgotten_after_a_month(post: Post) -> None:
    await post.alerts("one")
    await post.messenger.deliver_some()
    post.office.clock.ahead += timedelta(days=31)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(post.messenger.run(), name="messenger")
        async with asyncio.timeout(10):
            while await post.office.pool.fetchval("SELECT count(*) FROM webhook_delivery"):
                await asyncio.sleep(0.01)
        task.cancel()
