"""No password, cookie, token, code, key or link of people's is found where it could be read.

But for the mails themselves, which have links: their table and the outbox are theirs alone.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyotp
import pytest

from gateway.rest.server import SESSION_COOKIE
from tests.gateway.management.office import PASSWORD, Browser, Got
from tests.scenarios import sinks
from tests.scenarios.caller import CHAT, asks, post
from tests.scenarios.deployment import Key
from tests.scenarios.management.installation import Installation, Team, credited, expect, new_key
from tests.scenarios.page import page
from tests.vendor import Vendor

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(300)]
CHANGED = "canary otter velvet 93ae"
WRONG = "canary wrong thimble 7d02"
_MAILS = {"mail", "outbox"}  # whose purpose it is
_SCOPES = ["organizations:read"]
_END_CONNECTIONS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE usename = current_user AND pid <> pg_backend_pid()
"""


class Office(NamedTuple):
    """What all of it happens in."""

    at: Installation
    secrets: dict[str, str]  # everything that nobody may read anywhere, by what it is
    refused: list[str]  # what was answered to wrong requests

    def keep(self, what: str, got: Got, *path: str) -> str:
        """Remember a secret of an answer."""
        found: Any = got.body
        for name in path:
            found = found[name]
        self.secrets[what] = str(found)
        return str(found)

    async def wrong(
        self, asking: Browser, method: str, path: str, body: Any = None, **how: Any
    ) -> None:
        """A request that is refused."""
        got = await asking.ask(method, path, body, **how)
        assert 400 <= got.status < 500, got
        self.refused.append(f"{got.body} {dict(got.headers)}")


def cookie_of(browser: Browser) -> str:
    """Its session's."""
    return next(one.value for one in browser.cookies() if one.key == SESSION_COOKIE)


async def enters(office: Office) -> tuple[Browser, Browser]:
    """Somebody who signs up, takes a second factor, loses her password; and the operator."""
    at, keep = office.at, office.keep
    root, ada = await asyncio.gather(
        at.operator("root@example.com"), at.signed_up("ada@example.com")
    )
    office.secrets["the password"] = PASSWORD
    office.secrets["the operator's cookie"] = cookie_of(root)
    office.secrets["the first cookie"] = cookie_of(ada)
    set_up = expect(await ada.post("/me/one-time-passwords", {"password": PASSWORD}), 201)
    app = pyotp.TOTP(keep("the secret of one-time passwords", set_up, "secret"))
    office.secrets["its address"] = set_up.body["uri"].partition("?")[2]
    asked = {"code": app.now()}
    made = expect(await ada.post("/me/one-time-passwords/confirmation", asked), 200)
    office.secrets.update((f"recovery code {code[:2]}", code) for code in made.body["codes"])
    expect(await ada.post("/password-resets", {"email": "ada@example.com"}), 202)
    link = await at.secret_mailed_to("ada@example.com")
    office.secrets["the link of a reset"] = link
    office.secrets["the new password"] = CHANGED
    asked = {"secret": link, "password": CHANGED}
    expect(await ada.post("/password-resets/confirm", asked), 204)
    code = made.body["codes"][0]
    expect(await ada.signs_in("ada@example.com", CHANGED, code=code), 201)
    office.secrets["the cookie"] = cookie_of(ada)
    office.secrets["the token of changes"] = ada.headers["X-CSRF-Token"]
    return root, ada


async def owns(office: Office, root: Browser, ada: Browser) -> tuple[Team, Key]:
    """Every kind of secret that an organization has; a key that works."""
    keep, team = office.keep, await office.at.founded(ada, "Acme", "studio")
    await credited(root, team.id, 10**9)
    owner = team.owner
    expect(await owner.patch("/policy", {"switches": {"secret_visibility": "members"}}), 200)
    key = await new_key(owner)
    office.secrets["an API key"] = key.secret
    rotated = await owner.post(f"/api-keys/{key.id}/rotation", {"grace_s": 600})
    keep("a rotated API key", expect(rotated, 201), "secret")
    keep("a member's own", expect(await owner.post(f"/api-keys/{key.id}/secret"), 200), "secret")
    asked = {"name": "ci", "scopes": _SCOPES}
    keep("a personal token", expect(await ada.post("/me/tokens", asked), 201), "secret")
    asked = {"name": "ci", "scopes": _SCOPES, "role": "admin"}
    keep("an organization's token", expect(await owner.post("/tokens", asked), 201), "secret")
    expect(await owner.post("/invitations", {"email": "bob@example.com"}), 201)
    office.secrets["an invitation"] = await office.at.secret_mailed_to("bob@example.com")
    return team, key


async def goes_wrong(office: Office, team: Team) -> None:
    """Secrets that are wrong or used up, in the wrong place, in what nobody can read."""
    had, wrong, owner = office.secrets, office.wrong, team.owner
    office.secrets["a wrong password"] = WRONG
    nobody = await office.at.stranger(at=1)
    for email in ("ada@example.com", "nobody@example.com"):
        await wrong(nobody, "POST", "/session", {"email": email, "password": WRONG})
    used = {"secret": had["the link of a reset"], "password": CHANGED}
    await wrong(nobody, "POST", "/password-resets/confirm", used)
    for what, secret in [*had.items()]:
        shown = await office.at.stranger()
        bearer = {"Authorization": f"Bearer {secret}", "X-Request-Id": secret}
        path = secret.replace(" ", "%20").replace("&", "%26").replace("?", "%3F")
        if what not in ("a personal token", "an organization's token"):
            await wrong(shown, "GET", "/organization", headers=bearer)
        await wrong(shown, "GET", f"/organization?token={path}")
        await wrong(shown, "GET", f"/{path}")
        await wrong(shown, "POST", "/session", data=f'{{"password": "{secret}'.encode())
        await wrong(shown, "POST", "/session", {"password": {"x": secret}})
        await wrong(owner, "PATCH", "/organization", {"time_zone": 1, secret: secret})
        await wrong(owner, "GET", f"/api-keys/{path}")
        await wrong(shown, "POST", "/invitations/lookup", {"secret": f"{secret}x"})
    forged = {"X-CSRF-Token": had["the cookie"]}
    await wrong(owner, "PATCH", "/organization", {"name": "x"}, headers=forged)


async def breaks(office: Office, team: Team) -> None:
    """Postgres breaks every connection while people sign in; a control process is killed, too."""
    machine = office.at.machines[1]
    there = await office.at.stranger(at=1)
    ask = {"email": "ada@example.com", "password": office.secrets["the new password"]}
    trying = [asyncio.ensure_future(there.post("/session", ask)) for _ in range(6)]
    connection = await machine.postgres()
    try:
        while not all(one.done() for one in trying):
            await connection.execute(_END_CONNECTIONS)
            await asyncio.sleep(0.02)
    finally:
        await connection.close()
    assert {one.result().status for one in trying} <= {401, 429, 503}
    (pid,) = machine.pids("control")
    await machine.kill_process(pid)
    await machine.until_ready()
    expect(await team.owner.by(office.at.control(0)).get("/organization"), 200)


async def places(office: Office) -> Mapping[str, bytes]:
    """All that is searched, of both machines."""
    one = office.at.machines[0]
    async with one.redis() as redis:
        held = await sinks.redis_dump(redis)
    machines = office.at.machines
    return {
        "refusals": "\n".join(office.refused).encode(),
        "metrics": b"".join([(await page(machine)).text.encode() for machine in machines]),
        "postgres": await sinks.postgres_dump(one, but=_MAILS),
        "redis": held,
        "log": b"".join(machine.log_path.read_bytes() for machine in machines),
        "files": b"".join(sinks.files(machine.data, but=_MAILS) for machine in machines),
    }


async def test_no_secret_of_people_is_left_anywhere_but_in_their_mails(
    folder: Path, vendor_apart: Vendor
) -> None:
    async with Installation.started(folder, vendor_apart, workers=(1, 1)) as at:
        office = Office(at, {}, [])
        root, ada = await enters(office)
        team, key = await owns(office, root, ada)
        assert (await post(at.machines[0], key, CHAT, asks(CHAT, "m"))).status == 200
        await goes_wrong(office, team)
        await breaks(office, team)
        searched = await places(office)
        assert sinks.hits(office.secrets, searched) == []
        assert b"ada@example.com" in searched["postgres"]
        assert sinks.hits({what: what for what in sinks.CONTROLS}, searched) == []
        await sinks.plant(at.machines[0])
        found = sinks.hits({what: what for what in sinks.CONTROLS}, await places(office))
        assert sinks.CONTROLS.items() <= {*found}, "the search does not find what is there"
        sizes = ", ".join(f"{name} {len(text) / 1024:.0f} KiB" for name, text in searched.items())
        print(
            f"\nF3: {len(office.secrets)} secrets of people and their organizations,"
            f" {len(office.refused)} refused requests, broken connections, a killed process: 0 hits"
            f" in {sizes}; {len(sinks.CONTROLS)} controls planted and found"
        )
