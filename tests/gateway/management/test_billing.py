"""Billing settings over HTTP."""

from typing import Any

import pytest

from tests.gateway.management.office import Office
from tests.gateway.management.team import founded


async def test_they_are_empty_at_first_and_then_what_was_set(office: Office) -> None:
    team = await founded(office)
    before = (await team.owner.get("/billing")).body
    assert (before["contacts"], before["billing_email"], before["version"]) == ([], None, 0)
    change = {
        "billing_email": "bills@example.com",
        "contacts": ["cfo@example.com"],
        "invoicing": {"tax_id": "DE1"},
    }
    after = (await team.owner.patch("/billing", change)).body
    assert (after["billing_email"], after["contacts"]) == (
        "bills@example.com",
        ["cfo@example.com"],
    )
    assert after["invoicing"]["tax_id"] == "DE1"
    assert (await team.owner.get("/organization")).body["billing_email"] == "bills@example.com"
    kept = (await team.owner.patch("/billing", {"contacts": []})).body
    assert (kept["contacts"], kept["invoicing"]["tax_id"]) == ([], "DE1")
    assert len(await team.audited("billing.update")) == 2


async def test_whoever_changes_an_older_version_is_told(office: Office) -> None:
    team = await founded(office)

    async def changes(version: int) -> int:
        headers = {"If-Match": f'"{version}"'}
        return (await team.owner.patch("/billing", {"contacts": []}, headers=headers)).status

    assert [await changes(at) for at in (1, 0, 0, 1)] == [412, 200, 412, 200]


@pytest.mark.parametrize(
    ("preset", "reads", "changes"),
    [("studio", 403, 403), ("pooled", 403, 403), ("open-team", 200, 403), ("platform", 403, 403)],
)
async def test_members_change_nothing_and_read_what_the_policy_lets_them(
    office: Office, preset: str, reads: int, changes: int
) -> None:
    team = await founded(office, preset)
    bob = await team.joined("bob@example.com")
    assert (await bob.get("/billing")).status == reads
    assert (await bob.patch("/billing", {"contacts": []})).status == changes


@pytest.mark.parametrize(
    "change",
    [
        {"contacts": ["nobody"]},
        {"contacts": [f"c{n}@example.com" for n in range(11)]},
        {"billing_email": "x"},
        {"invoicing": {"vat": "x"}},
        {"invoicing": {"name": "a\nb"}},
    ],
)
async def test_flawed_settings_are_refused(office: Office, change: dict[str, Any]) -> None:
    team = await founded(office)
    assert (await team.owner.patch("/billing", change)).status == 400
