"""Somebody with an authenticator app, for the tests of the second factor.

ada = await with_app(office)
got = await ada.signs_in(code=ada.code())
"""

from datetime import timedelta
from typing import Any

import pyotp

from tests.gateway.management.office import PASSWORD, Browser, Got, Office

ADA = "ada@example.com"
TRIAL = "/me/one-time-passwords"
CONFIRMATION = f"{TRIAL}/confirmation"
REMOVAL = f"{TRIAL}/removal"


class Ada:
    """Somebody with an authenticator app; her other sessions are `elsewhere`."""

    def __init__(self, office: Office, browser: Browser, elsewhere: Browser) -> None:
        self.office, self.browser, self.elsewhere = office, browser, elsewhere
        self.secret = ""
        self.recovery: list[str] = []

    def code(self, steps: int = 0) -> str:
        """What her app shows, so many steps from now."""
        return pyotp.TOTP(self.secret).at(self.office.desk.now(), counter_offset=steps)

    def wrong(self) -> str:
        """A code that is not right anywhere near now."""
        near = {self.code(steps) for steps in range(-2, 3)}
        return next(text for text in map("{:06}".format, range(10)) if text not in near)

    async def starts(self) -> Got:
        got = await self.browser.post(TRIAL, {"password": PASSWORD})
        if got.status == 201:
            self.secret = got.body["secret"]
        return got

    async def confirms(self) -> Got:
        got = await self.browser.post(CONFIRMATION, {"code": self.code()})
        if got.status == 200:
            self.recovery = got.body["codes"]
        return got

    async def signs_in(self, **more: Any) -> Got:
        """At a browser that was never signed in before."""
        return await self.office.stranger().signs_in(ADA, **more)


def wait(office: Office, minutes: float = 60) -> None:
    """To the beginning of a step, and long enough that the address may try codes again."""
    office.clock.ahead += timedelta(minutes=minutes)
    into_s = office.desk.now().timestamp() % 30
    office.clock.ahead += timedelta(seconds=30 - into_s)


async def without_app(office: Office) -> Ada:
    """She has none yet, and is signed in at two browsers."""
    browser, elsewhere = await office.signed_up(ADA), office.stranger()
    await elsewhere.signs_in(ADA)
    wait(office)
    return Ada(office, browser, elsewhere)


async def with_app(office: Office) -> Ada:
    """She has set hers up."""
    ada = await without_app(office)
    assert (await ada.starts()).status == 201
    assert (await ada.confirms()).status == 200
    wait(office)
    return ada


async def is_strong(browser: Browser) -> bool:
    """Whether their session has a second factor."""
    sessions = (await browser.get("/sessions")).body["data"]
    (this,) = [one for one in sessions if one["is_this_one"]]
    return bool(this["is_strong"])
