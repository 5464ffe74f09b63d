"""Owners and admins say which programs are told of what."""

import pytest

from gateway.management.webhooks import WEBHOOKS_MAX
from tests.gateway.management.office import Office
from tests.gateway.management.team import founded

URL = "https://example.com/hooks"


async def test_a_webhook_is_made_changed_and_deleted(office: Office) -> None:
    team = await founded(office)
    made = await team.owner.post("/webhooks", {"url": URL, "events": ["balance.low"]})
    assert made.status == 201, made
    webhook = made.body["webhook"]
    path = f"/webhooks/{webhook['id']}"
    assert made.body["secret"].startswith("whsec_")
    assert (webhook["events"], webhook["is_enabled"]) == (["balance.low"], True)
    changed = await team.owner.patch(path, {"events": None, "description": "pager"})
    assert (changed.body["events"], changed.body["description"]) == (None, "pager")
    assert (await team.owner.get("/webhooks")).body["data"] == [changed.body]
    stale = await team.owner.patch(path, {"url": URL}, headers={"If-Match": '"1"'})
    assert (stale.status, stale.code) == (412, "changed_meanwhile")
    assert (await team.owner.delete(path)).status == 204
    assert (await team.owner.get(path)).code == "webhook_not_found"
    actions = ("webhook.create", "webhook.update", "webhook.delete")
    assert [len(await team.audited(action)) for action in actions] == [1, 1, 1]


async def test_the_secret_is_shown_once_and_stored_sealed(office: Office) -> None:
    team = await founded(office)
    made = (await team.owner.post("/webhooks", {"url": URL})).body
    stored = await office.pool.fetchval("SELECT secret FROM webhook")
    assert made["secret"].encode() not in stored
    seen = await team.owner.get(f"/webhooks/{made['webhook']['id']}")
    assert made["secret"] not in str(seen.body)
    for action in ("webhook.create", "webhook.rotate"):
        assert made["secret"] not in str(await team.audited(action))


@pytest.mark.parametrize(
    "url",
    ["http://example.com", "https://127.0.0.1/", "https://169.254.169.254/", "https://a:b@c.d/"],
)
async def test_a_url_that_leads_inside_is_refused(office: Office, url: str) -> None:
    team = await founded(office)
    got = await team.owner.post("/webhooks", {"url": url})
    assert (got.status, got.code) == (400, "invalid_url")
    made = (await team.owner.post("/webhooks", {"url": URL})).body["webhook"]
    got = await team.owner.patch(f"/webhooks/{made['id']}", {"url": url})
    assert (got.status, got.code) == (400, "invalid_url")


async def test_there_are_so_many_at_most(office: Office) -> None:
    team = await founded(office)
    for _ in range(WEBHOOKS_MAX):
        assert (await team.owner.post("/webhooks", {"url": URL})).status == 201
    got = await team.owner.post("/webhooks", {"url": URL})
    assert (got.status, got.code) == (409, "webhooks_max")


async def test_another_organizations_webhooks_do_not_exist(office: Office) -> None:
    team = await founded(office)
    made = (await team.owner.post("/webhooks", {"url": URL})).body["webhook"]
    other = await founded(office, email="bob@example.com")
    path = f"/webhooks/{made['id']}"
    for got in (
        await other.owner.get(path),
        await other.owner.patch(path, {"is_enabled": False}),
        await other.owner.delete(path),
        await other.owner.post(f"{path}/rotation"),
        await other.owner.post(f"{path}/test"),
        await other.owner.get(f"{path}/deliveries"),
    ):
        assert (got.status, got.code) == (404, "webhook_not_found")
    assert (await team.owner.get(path)).status == 200


async def test_a_test_message_waits_to_be_delivered(office: Office) -> None:
    team = await founded(office)
    made = (await team.owner.post("/webhooks", {"url": URL})).body["webhook"]
    path = f"/webhooks/{made['id']}"
    sent = await team.owner.post(f"{path}/test")
    assert (sent.status, sent.body["kind"], sent.body["state"]) == (202, "webhook.test", "waiting")
    assert (await team.owner.get(f"{path}/deliveries")).body["data"] == [sent.body]
    await team.owner.patch(path, {"is_enabled": False})
    assert (await team.owner.post(f"{path}/test")).code == "webhook_disabled"
