"""The policy of an organization, over HTTP."""

from tests.gateway.management.office import Office
from tests.gateway.management.test_tenants import acme


async def test_a_policy_is_a_preset_and_what_differs(office: Office) -> None:
    organization = await acme(await office.signed_up("ada@example.com"), preset="studio")
    switches = {"permissions": {"key.create": "members"}, "labels": {"member": "Artist"}}

    changed = await organization.patch("/policy", {"switches": switches})

    assert changed.body["audiences"]["key.create"] == "members"
    assert (changed.body["labels"]["member"], changed.body["preset"]) == ("Artist", "studio")
    other = await organization.patch("/policy", {"preset": "open-team"})
    assert other.body["audiences"]["billing.purchase"] == "members"
    assert other.body["labels"]["member"] == "Artist", "switches stay"
    log = await office.pool.fetch(
        "SELECT actor, action, before, after FROM audit_log WHERE action = 'policy.update'"
        " ORDER BY number"
    )
    assert [row["actor"] for row in log] == ["ada@example.com"] * 2
    assert '"key.create": "members"' in log[0]["after"]
