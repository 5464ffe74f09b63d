"""Organizations with people in them, and the gateways that hear of their keys."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

from gateway.auth import Authenticator, AuthLimits
from gateway.credential import AuthError
from gateway.management import known_keys
from tests.gateway.management.office import Browser, Office
from tests.gateway.tenancy import Tenancy, authenticating, until


async def made_organization(founder: Browser, name: str, preset: str = "platform") -> Browser:
    """Its founder, at it."""
    made = await founder.post("/organizations", {"name": name, "preset": preset})
    assert made.status == 201, made
    return founder.at(made.body["id"])


async def joined(office: Office, owner: Browser, email: str, role: str = "member") -> Browser:
    """Somebody new, in the owner's organization."""
    organization_id = owner.headers["X-Organization-Id"]
    browser = await office.signed_up(email)
    person_id, member_id = (await browser.get("/me")).body["id"], uuid4()
    async with office.pool.acquire() as connection, connection.transaction():
        await connection.execute(
            "INSERT INTO member (id, organization_id, email, role) VALUES ($1, $2, $3, $4)",
            *(member_id, organization_id, email, role),
        )
        await connection.execute(
            "INSERT INTO seat (person_id, organization_id, member_id) VALUES ($1, $2, $3)",
            *(person_id, organization_id, member_id),
        )
    return browser.at(organization_id)


async def made_operator(office: Office, email: str) -> Browser:
    """Somebody new who runs the installation."""
    browser = await office.signed_up(email)
    await office.pool.execute("UPDATE person SET is_operator = true WHERE email = $1", email)
    return browser


@asynccontextmanager
async def authenticator_of(
    office: Office, *, limits: AuthLimits | None = None
) -> AsyncIterator[Authenticator]:
    """A gateway's authenticator, which hears of what changes at the office."""
    find, stage = partial(known_keys.find, office.pool), Tenancy(office.pool, office.redis)
    async with authenticating(stage, find, limits=limits) as authenticator:
        yield authenticator


async def refused(authenticator: Authenticator, key: str) -> float:
    """How many seconds it takes until the key is refused."""

    async def is_refused() -> bool:
        try:
            await authenticator.principal(key)
        except AuthError:
            return True
        return False

    return await until(is_refused, within_s=3)


async def accepted(authenticator: Authenticator, key: str) -> float:
    """How many seconds it takes until the key is taken."""

    async def is_accepted() -> bool:
        try:
            await authenticator.principal(key)
        except AuthError:
            return False
        return True

    return await until(is_accepted, within_s=3)
