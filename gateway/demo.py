"""The demo of `tollgate up`: an organization with credit and a key, one call, and what it cost.

Making the organization may be repeated: a later start finds what an earlier one made.
"""

import asyncio
import os
import re
import secrets
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import aiohttp

from gateway.commands.stores import Stores
from gateway.errors import NotFound
from gateway.keys import RANDOM_BYTES, is_well_formed, issue
from gateway.management import api_keys, known_keys, operators, organizations, usage
from gateway.management import credits as credits_
from gateway.management.api_keys import KeyLabel, KeyTerms
from gateway.management.credits import Grant
from gateway.management.organizations import Organization, OrganizationTerms
from ledger.money import nanos

ORGANIZATION = "demo"
OPERATOR = "operator@localhost"
QUESTION = "Why should a business keep a ledger? Answer in one sentence."
KEY_FILE = "demo.key"
OUTPUT_TOKENS_MAX = 120

_CREDIT = nanos("5")
_ACTOR = "tollgate up"
_CALL_S = 120.0  # the model answers in seconds, on a busy machine in tens of them
_BOOKED_S = 15.0  # a flush takes a tenth of a second
_LOOK_S = 0.1
_RECENT = 20
_OVERHEAD = re.compile(rb"^tollgate_overhead_seconds_(sum|count) ([0-9.e+-]+)$", re.MULTILINE)


class CallFailed(Exception):
    """The demo's call came to nothing; the message says why."""


class Tenant(NamedTuple):
    """Who makes the demo's call."""

    organization: Organization
    key: str


class Asked(NamedTuple):
    """A call that was answered, as its client saw it."""

    call_id: UUID
    first_token_s: float
    total_s: float


class Overhead(NamedTuple):
    """Our own share of all calls so far."""

    seconds: float
    calls: int


class Bill(NamedTuple):
    """What the books say of the call."""

    call: usage.Call
    balance: int  # after it, nano-USD


async def tenant(stores: Stores, data_dir: Path) -> Tenant:
    """The demo's organization with its credit, granted once, and a key that works."""
    try:
        organization = await organizations.resolve(stores.pool, ORGANIZATION)
    except NotFound:
        terms = OrganizationTerms(name=ORGANIZATION, actor=_ACTOR)
        organization = await organizations.create(stores.pool, stores.redis, terms)
    await credits_.grant(
        stores.pool,
        stores.redis,
        Grant(organization.id, _CREDIT, "to try it", _ACTOR, idempotency_key="demo credit"),
    )
    key = await _key(stores, organization.id, data_dir / KEY_FILE)
    return Tenant(await organizations.resolve(stores.pool, str(organization.id)), key)


async def operator_link(stores: Stores, now: datetime) -> str | None:
    """A link that signs the operator in once, whom it makes; None: one has signed in before."""
    if await operators.have_signed_in(stores.pool):
        return None
    secret = await operators.make(
        stores.pool,
        OPERATOR,
        digest=stores.key_digest(),
        random_bytes=secrets.token_bytes,
        now=now,
    )
    return f"{stores.config.management.public_url.rstrip('/')}/sign-in#{secret.reveal()}"


async def _key(stores: Stores, organization_id: UUID, file: Path) -> str:
    digest = stores.key_digest()
    kept = _kept(file)
    if is_well_formed(kept):
        known = (await known_keys.find(stores.pool, [digest(kept)])).get(digest(kept))
        if known is not None and not known.is_revoked:
            return kept
    new = issue(secrets.token_bytes(RANDOM_BYTES))
    text = new.secret.reveal()
    _keep(file, text)
    await api_keys.create(
        stores.pool,
        stores.cache,
        organization_id=organization_id,
        label=KeyLabel(digest(text), new.last4),
        terms=KeyTerms(name="demo", actor=_ACTOR),
    )
    return text


def _kept(file: Path) -> str:
    return file.read_text().strip() if file.exists() else ""


def _keep(file: Path, text: str) -> None:
    """Write it where only we can read it."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(f"{text}\n")


async def ask(base_url: str, key: str, *, model: str, write: Callable[[str], None]) -> Asked:
    """Send the question with the official client; `write` gets the answer as it comes."""
    import openai  # noqa: PLC0415 - of the extra `demo`, and slow to import

    loop = asyncio.get_running_loop()
    first_s = 0.0
    # A proxy that the environment names must not be asked for our own loopback.
    transport = openai.DefaultAsyncHttpxClient(trust_env=False)
    client = openai.AsyncOpenAI(
        base_url=base_url, api_key=key, max_retries=0, timeout=_CALL_S, http_client=transport
    )
    async with client:
        try:
            # The process meets the key here for the first time, as it would long before any call.
            await client.models.retrieve(model)
            began_s = loop.time()
            raw = await client.chat.completions.with_raw_response.create(
                model=model,
                messages=[{"role": "user", "content": QUESTION}],
                max_tokens=OUTPUT_TOKENS_MAX,
                temperature=0,
                stream=True,
            )
            async for chunk in raw.parse():
                text = chunk.choices[0].delta.content if chunk.choices else None
                if text:
                    first_s = first_s or loop.time() - began_s
                    write(text)
        except openai.OpenAIError as error:
            raise CallFailed(f"the demo's call failed: {error}") from error
    return Asked(UUID(raw.headers["x-request-id"]), first_s, loop.time() - began_s)


async def bill(stores: Stores, organization_id: UUID, call_id: UUID) -> Bill:
    """What Postgres has of the call, once it has it."""
    try:
        async with asyncio.timeout(_BOOKED_S):
            while (call := await _record(stores, organization_id, call_id)) is None:  # noqa: ASYNC110 - Postgres calls nobody back
                await asyncio.sleep(_LOOK_S)
    except TimeoutError as error:
        raise CallFailed(
            f"the call was answered, but no record of it came within {_BOOKED_S:.0f} s"
        ) from error
    return Bill(call, (await organizations.resolve(stores.pool, str(organization_id))).balance)


async def _record(stores: Stores, organization_id: UUID, call_id: UUID) -> usage.Call | None:
    calls = await usage.recent(stores.pool, organization_id, limit=_RECENT)
    return next((call for call in calls if call.call_id == call_id), None)


async def overhead(session: aiohttp.ClientSession, metrics_url: str) -> Overhead:
    """What the metrics page says of our own share."""
    async with session.get(metrics_url) as answer:
        page = await answer.read()
    said = {name: float(figure) for name, figure in _OVERHEAD.findall(page)}
    return Overhead(said.get(b"sum", 0.0), int(said.get(b"count", 0)))
