"""The people of a story: each has a browser, an address and mail, and does what a page would do."""

from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import uuid4

import aiohttp
import pyotp

from ledger.money import NANOS_PER_USD
from tests.gateway.management.office import PASSWORD, Browser, Got
from tests.scenarios.stories.letter_box import LetterBox, link_in
from tests.scenarios.stories.patience import until

NOT_PERMITTED = "not_permitted"


class MadeKey(NamedTuple):
    """An API key, with the secret that its maker was shown."""

    id: str
    secret: str


class Person:
    """Somebody signed in: in an organization, or at their own account."""

    def __init__(self, name: str, email: str, browser: Browser, post: LetterBox) -> None:
        self.name, self.email, self.browser = name, email, browser
        self._post = post
        self.organization_id = ""  # "": their own account

    def at(self, organization_id: str) -> "Person":
        """The same person, who now looks at this organization."""
        there = Person(self.name, self.email, self.browser.at(organization_id), self._post)
        there.organization_id = organization_id
        return there

    @property
    def password(self) -> Mapping[str, str]:
        """What they sign in with."""
        return {"email": self.email, "password": PASSWORD}

    # What anybody does

    async def asks(self, method: str, path: str, body: Any = None) -> Got:
        """A request with everything that a page sends, whatever is answered."""
        # A page draws a key for each click; two clicks are two purchases.
        headers = {"Idempotency-Key": uuid4().hex} if method == "POST" else {}
        return await self.browser.ask(method, path, body, headers=headers)

    async def does(self, method: str, path: str, body: Any = None) -> Any:
        """What is done for them; the answer's document."""
        got = await self.asks(method, path, body)
        assert got.status < 300, f"{self.name}: {method} {path}: {got.status} {got.body}"
        return got.body

    async def sees(self, path: str) -> Any:
        """What they are shown."""
        return await self.does("GET", path)

    async def may_not(
        self, method: str, path: str, body: Any = None, *, code: str = NOT_PERMITTED
    ) -> None:
        """Refused with this code."""
        got = await self.asks(method, path, body)
        assert got.status >= 400, f"{self.name}: {method} {path} was done: {got.body}"
        assert got.code == code, f"{self.name}: {method} {path}: {got.body}"

    async def follows(self, about: str, path: str) -> Any:
        """The link of the newest mail about this: its page opens, and posts what stood in it."""
        page, secret = link_in(await self._post.letter(self.email, about))
        async with aiohttp.request("GET", page) as answer:
            assert (answer.status, answer.content_type) == (200, "text/html"), page
        return await self.does("POST", path, {"secret": secret})

    async def signs_up(self) -> None:
        """As far as one comes without reading one's mail."""
        await self.does("POST", "/people", {**self.password, "name": self.name})

    async def signs_in(self) -> None:
        """By password, in the same browser."""
        got = await self.browser.signs_in(self.email)
        assert got.status == 201, got

    async def sets_up_one_time_passwords(self) -> None:
        """With an app, whose first code makes this session as strong as it gets."""
        path = "/me/one-time-passwords"
        app = pyotp.TOTP((await self.does("POST", path, {"password": PASSWORD}))["secret"])
        await self.does("POST", f"{path}/confirmation", {"code": app.now()})

    # Organizations and members

    async def founds(self, name: str, preset: str, **more: Any) -> "Person":
        """A new organization, whose owner they are."""
        made = await self.does("POST", "/organizations", {"name": name, "preset": preset, **more})
        assert (made["role"], made["preset"]) == ("owner", preset)
        return self.at(made["id"])

    async def invites(self, whom: "Person", role: str) -> "Person":
        """By mail; they accept by its link. `whom`, at the organization."""
        await self.does("POST", "/invitations", {"email": whom.email, "role": role})
        return await whom.joins()

    async def joins(self) -> "Person":
        """By the link of the newest invitation."""
        membership = await self.follows("Join", "/invitations/acceptance")
        return self.at(membership["organization_id"])

    async def sees_members(self) -> Mapping[str, str]:
        """Everybody's name, and what the organization calls their role."""
        members = (await self.sees("/members?limit=200"))["data"]
        return {one["name"]: one["role_label"] for one in members}

    async def member_id(self, email: str) -> str:
        """Whom the organization knows by this address."""
        members = (await self.sees("/members?limit=200"))["data"]
        return next(str(one["id"]) for one in members if one["email"] == email)

    # Keys and money

    async def makes_key(self, name: str, **terms: Any) -> MadeKey:
        """A key of the organization's, whose secret only they have seen."""
        made = await self.does("POST", "/api-keys", {"name": name, **terms})
        return MadeKey(made["key"]["id"], made["secret"])

    async def saves_card(self, *, owner: str = "person") -> str:
        """A card that pays whatever is asked of it: their own, or the organization's."""
        started = await self.does("POST", "/payment-methods", {"kind": "card", "owner": owner})
        path = f"/payment-methods/{started['id']}/confirmation"
        return str((await self.does("POST", path, {"sandbox_value": "approve"}))["id"])

    async def buys(self, *, usd: float, card: str) -> Any:
        """Credits for the organization; the purchase. They are usable when it is answered."""
        wanted = {"amount_nanos": nanos_of(usd), "method_id": card}
        bought = await self.does("POST", "/purchases", wanted)
        assert (bought["state"], bought["is_credited"]) == ("paid", True)
        return bought

    async def reveals(self, key: MadeKey) -> str:
        """Their own secret of a key that somebody else has made."""
        return str((await self.does("POST", f"/api-keys/{key.id}/secret"))["secret"])

    async def sees_balance(self, shown: str) -> None:
        """What the wallet shows, in the organization's unit, once all calls are booked."""

        async def is_shown() -> bool:
            return bool((await self.wallet()) == shown)

        try:
            await until(is_shown)
        except TimeoutError:
            raise AssertionError(f"not {shown}: {await self.sees('/wallet')}") from None

    async def wallet(self) -> str:
        """What there is, as people read it: "9,000 GP"."""
        display = (await self.sees("/wallet"))["display"]
        return f"{display['amounts']['balance']} {display['unit']}"

    async def sees_costs(self, by: str, only: str = "") -> Mapping[str, float]:
        """What calls have cost, in dollars, by member or key; `only`: more of the query."""
        lines = (await self.sees(f"/usage?by={by}{only}"))["data"]
        return {str(line[by]): line["charge_nanos"] / NANOS_PER_USD for line in lines}

    async def audit(self) -> Mapping[str, list[str]]:
        """Who did what, by action, the newest first."""
        done: dict[str, list[str]] = {}
        for line in (await self.sees("/audit-log?limit=200"))["data"]:
            done.setdefault(line["action"], []).append(line["actor"])
        return done


def nanos_of(usd: float) -> int:
    """Nano-USD."""
    return round(usd * NANOS_PER_USD)
