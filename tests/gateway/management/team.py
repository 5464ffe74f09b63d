"""An organization with people in it, made over HTTP, for the tests that need some.

team = await founded(office, "studio")
bob = await team.joined("bob@example.com", "admin")
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import orjson

from gateway.management import api_keys
from gateway.management.api_keys import KeyLabel, KeyTerms
from gateway.management.bearers import BearerKind, issue
from tests.gateway.management.office import Browser, Got, Office
from tests.gateway.tenancy import digest_of, new_key

_TOKEN = """
    INSERT INTO token (id, person_id, organization_id, name, role, scopes, digest, last4,
                       created_by)
    VALUES ($1, $2, $3, 'ci', $4, $5, $6, $7, $8)
"""
ROLES = ("owner", "admin", "member")


@dataclass(slots=True)
class Team:
    """One organization, and its founder at it."""

    office: Office
    id: str
    owner: Browser

    async def invited(self, email: str, role: str = "member", *, by: Browser | None = None) -> str:
        """An open invitation's secret."""
        got = await (by or self.owner).post("/invitations", {"email": email, "role": role})
        assert got.status == 201, got
        return await self.office.secret_mailed_to(email)

    async def joined(self, email: str, role: str = "member") -> Browser:
        """A new person who was invited and accepted, at the organization."""
        return await self.joins(await newcomer(self.office, email), email, role)

    async def joins(self, browser: Browser, email: str, role: str = "member") -> Browser:
        """The same for somebody who has an account."""
        secret = await self.invited(email, role)
        got = await browser.post("/invitations/acceptance", {"secret": secret})
        assert got.status == 200, got
        return browser.at(self.id)

    async def cast(self) -> Mapping[str, Browser]:
        """One of each role beside the founder: owner@example.com and so on."""
        return {role: await self.joined(f"{role}@example.com", role) for role in ROLES}

    async def members(self) -> Mapping[str, Any]:
        """Who is in it, by address."""
        rows = (await self.owner.get("/members?limit=200")).body["data"]
        return {row["email"]: row for row in rows}

    async def member_id(self, email: str) -> str:
        return str((await self.members())[email]["id"])

    async def switched(self, **switches: Any) -> None:
        """Its policy has these switches, and no others."""
        got = await self.owner.patch("/policy", {"switches": switches})
        assert got.status == 200, got

    async def audited(self, action: str) -> Sequence[Mapping[str, Any]]:
        """The lines of its audit log about this."""
        rows = await self.office.pool.fetch(
            "SELECT actor, target, before, after, address FROM audit_log"
            " WHERE organization_id = $1 AND action = $2 ORDER BY number",
            UUID(self.id),
            action,
        )
        parsed = {"before", "after"}
        return [
            {
                key: orjson.loads(value or "null") if key in parsed else value
                for key, value in row.items()
            }
            for row in rows
        ]


async def founded(office: Office, preset: str = "studio", email: str = "ada@example.com") -> Team:
    """Somebody new who made an organization."""
    ada = await newcomer(office, email)
    got = await ada.post("/organizations", {"name": "Acme", "preset": preset})
    assert got.status == 201, got
    return Team(office, got.body["id"], ada.at(got.body["id"]))


async def newcomer(office: Office, email: str) -> Browser:
    """Somebody new; time passes first, because one address may guess so often only."""
    rested(office)
    return await office.signed_up(email)


def rested(office: Office) -> None:
    """So much time passes that every rate limit is forgotten."""
    office.clock.ahead += timedelta(minutes=11)


async def key_of(office: Office, organization_id: str, member_id: str) -> str:
    """The text of a new API key of a member."""
    text = new_key()
    await api_keys.create(
        office.pool,
        office.desk.cache,
        organization_id=UUID(organization_id),
        label=KeyLabel(digest_of(text), text[47:51]),
        terms=KeyTerms(name="key", member_id=UUID(member_id)),
    )
    return text


async def with_token(
    office: Office,
    scopes: Sequence[str],
    *,
    person_of: str | None = None,
    organization: tuple[str, str] | None = None,
    created_by: str = "ada@example.com",
) -> Browser:
    """A program with a token: of the person with this address, or of (organization, role)."""
    kind = BearerKind.ORGANIZATION if organization else BearerKind.PERSONAL
    bearer = issue(kind, secrets.token_bytes, office.desk.digest)
    person_id = await office.pool.fetchval("SELECT id FROM person WHERE email = $1", person_of)
    organization_id, role = organization or (None, None)
    place = None if organization_id is None else UUID(organization_id)
    row = (uuid4(), person_id, place, role, scopes, bearer.digest, bearer.last4, created_by)
    await office.pool.execute(_TOKEN, *row)
    program = office.stranger()
    program.headers["Authorization"] = f"Bearer {bearer.secret.reveal()}"
    return program


def statuses(answers: Sequence[Got]) -> list[int]:
    """In order of size."""
    return sorted(got.status for got in answers)
