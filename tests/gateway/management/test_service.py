"""The API as it is served: its document, the page for people, and where links lead."""

import aiohttp
import pytest

from gateway.management.mails import Postman
from gateway.management.routes import ROUTES
from gateway.management.service import chores_of
from gateway.payments.sandbox import Sandbox
from gateway.settings import MailSettings
from tests.gateway.management.office import Office


async def fetched(office: Office, path: str) -> tuple[aiohttp.ClientResponse, str]:
    async with aiohttp.ClientSession() as http, http.get(office.url + path) as answer:
        return answer, await answer.text()


async def test_the_document_is_there_for_programs_and_for_people(office: Office) -> None:
    answer, text = await fetched(office, "/api/v1/openapi.json")
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert text.count('"operationId"') == len(ROUTES)
    answer, text = await fetched(office, "/api/v1/docs")
    assert (answer.status, answer.content_type) == (200, "text/html")
    assert all(f'id="{route.name}"' in text for route in ROUTES)


@pytest.mark.parametrize(
    "path", ["/verify", "/reset", "/sign-in", "/signed-in/google", "/invitation"]
)
async def test_a_link_leads_to_a_page_that_runs_only_its_own_script(
    office: Office, path: str
) -> None:
    pages = [await fetched(office, path) for _ in range(2)]
    policies = [answer.headers["Content-Security-Policy"] for answer, _ in pages]
    assert policies[0] != policies[1], "each has a nonce of its own"
    for (answer, text), policy in zip(pages, policies, strict=True):
        nonce = policy.partition("'nonce-")[2].partition("'")[0]
        assert f'<script nonce="{nonce}">' in text
        assert answer.headers["Referrer-Policy"] == "no-referrer"


async def test_without_a_processor_nothing_is_sold_paid_or_renewed(office: Office) -> None:
    selling = office.desk._replace(processor=Sandbox(office.pool, office.desk.now, "http://here"))
    postman = Postman(office.pool, MailSettings(), office.desk.config.data_dir, office.desk.now)
    sold = [chore.rows for chore in chores_of(selling, postman)]
    unsold = [chore.rows for chore in chores_of(office.desk._replace(processor=None), postman)]
    assert (sold, unsold) == (
        ["mails", "answers", "payments", "subscriptions"],
        ["mails", "answers"],
    )
