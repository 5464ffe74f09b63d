"""What is said in calls is kept for who opted in, sealed, for as long as they want it."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from gateway.copied import SIDE_BYTES_MAX
from tests.scenarios import sinks
from tests.scenarios.caller import CHAT, Answer, asks, post
from tests.scenarios.deployment import Key
from tests.scenarios.management.installation import Installation, Team, credited, expect, new_key
from tests.scenarios.outages import until
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(180)]
PROMPT, ANSWER = "canary thistle 5f10", "canary saffron 92bc"
LEARNED_S_MAX = 1.0
_READABLE = """
    SELECT count(*) FROM call_content AS c JOIN content_key AS k ON k.id = c.key_id
    WHERE k.sealed IS NOT NULL
"""


def ask(model: str, **more: Any) -> dict[str, Any]:
    asked = asks(CHAT, f"vendor/{model}", **more)
    asked["messages"][0]["content"] = PROMPT
    return asked


async def kept(team: Team) -> list[str]:
    """The calls of which something is kept, the newest first."""
    data = expect(await team.owner.get("/contents"), 200).body["data"]
    return [one["call_id"] for one in data]


async def opts_in(team: Team, key: Key) -> None:
    allows = {"log_level": "retain", "content_logging": True}
    expect(await team.owner.patch("/privacy", allows), 200)
    project = (await team.owner.get(f"/api-keys/{key.id}")).body["project_id"]
    expect(await team.owner.patch(f"/projects/{project}", {"content_logging": True}), 200)


async def test_what_is_said_is_kept_sealed_for_who_opted_in_and_for_nobody_else(
    folder: Path, vendor_apart: Vendor
) -> None:
    async with Installation.started(folder, vendor_apart, workers=(2,)) as at:
        machine = at.machines[0]
        root, ada = await asyncio.gather(
            at.operator("root@example.com"), at.signed_up("ada@example.com")
        )
        team = await at.founded(ada, "Acme", "studio")
        other = await at.founded(ada, "Other", "studio")
        keys = []
        for one in (team, other):
            await credited(root, one.id, 10**9)
            keys.append(await new_key(one.owner))
        key, theirs = keys
        said = await vendor_apart.script("said", text=ANSWER, output_tokens=5)
        long = await vendor_apart.script("long", text="x" * SIDE_BYTES_MAX, output_tokens=5)

        assert (await post(machine, key, CHAT, ask(said))).status == 200
        await opts_in(team, key)

        async def is_kept() -> bool:
            assert (await post(machine, key, CHAT, ask(said))).status == 200
            return bool(await kept(team))

        learned_s = await until(is_kept, within_s=LEARNED_S_MAX + 4)
        whole = await post(machine, key, CHAT, ask(said))
        streamed = await post(machine, key, CHAT, ask(said, stream=True))
        cut = await post(machine, key, CHAT, ask(long))
        failed = await post(machine, key, CHAT, ask("nothing-like-it"))
        assert (await post(machine, theirs, CHAT, ask(said))).status == 200
        calls = [answer.headers["x-request-id"] for answer in (whole, streamed, cut, failed)]

        async def are_kept() -> bool:
            return {*calls} <= {*await kept(team)}

        await until(are_kept, within_s=10)
        assert await kept(other) == []
        for call, answer in zip(calls, (whole, streamed, cut, failed), strict=True):
            await is_as_sent(team, call, answer, is_cut=answer is cut)

        for place in (
            await sinks.postgres_dump(machine),
            sinks.files(machine.data),
            machine.log_path.read_bytes(),
        ):
            assert not sinks.hits({"prompt": PROMPT, "answer": ANSWER}, {"": place})
        expect(await team.owner.delete("/contents"), 204)
        assert await kept(team) == []
        expect(await team.owner.patch("/privacy", {"content_logging": False}), 200)
        await asyncio.sleep(LEARNED_S_MAX)  # promised: within it, every gateway has learned it
        for _ in range(20):
            assert (await post(machine, key, CHAT, ask(said))).status == 200
        assert await machine.stop() == 0  # whatever waits is written
        connection = await machine.postgres()
        try:
            assert await connection.fetchval(_READABLE) == 0, "nothing that was said since"
        finally:
            await connection.close()
        print(f"\ncontents: kept {learned_s:.2f} s after the opt-in; {len(calls)} as sent; 0 hits")


async def is_as_sent(team: Team, call: str, answer: Answer, *, is_cut: bool) -> None:
    got = expect(await team.owner.get(f"/contents/{UUID(call)}"), 200).body
    assert PROMPT in got["request"]
    assert got["is_cut"] is is_cut
    sent = answer.body.decode()
    assert got["answer"] == (sent[:SIDE_BYTES_MAX] if is_cut else sent)
