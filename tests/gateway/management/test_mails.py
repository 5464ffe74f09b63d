"""Mail is sent over SMTP, or kept as files; nothing is lost when the server is away."""

import email
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.management.mails import Mail, Postman, post
from gateway.settings import MailSettings
from providers.adapter import Secret
from tests.gateway.management.office import Office
from tests.gateway.management.post_box import Box, open_box

FACTS = {"site": "https://gate.example", "hours": 24, "link": "https://gate.example/verify#x"}


@pytest.fixture
def box() -> Iterator[tuple[Box, MailSettings]]:
    with open_box() as opened:
        yield opened


async def write(office: Office, recipient: str = "ada@example.com") -> None:
    async with office.pool.acquire() as connection, connection.transaction():
        await post(connection, Mail(recipient, "verify", FACTS), office.desk.now())


async def test_a_mail_arrives_as_text_and_as_html(
    office: Office, box: tuple[Box, MailSettings], tmp_path: Path
) -> None:
    received, settings = box
    await write(office)

    assert await Postman(office.pool, settings, tmp_path, office.desk.now).send_some() == 1

    (message,) = received.got
    assert (message["To"], message["From"]) == ("ada@example.com", "Gate <gate@gate.example>")
    assert message["Subject"] == "Verify your e-mail address"
    parts = [part for part in message.walk() if not part.is_multipart()]
    assert [part.get_content_type() for part in parts] == ["text/plain", "text/html"]
    for part in parts:
        assert "https://gate.example/verify#x" in str(part.get_payload())


async def test_it_is_sent_once(
    office: Office, box: tuple[Box, MailSettings], tmp_path: Path
) -> None:
    received, settings = box
    await write(office)
    postmen = [Postman(office.pool, settings, tmp_path, office.desk.now) for _ in range(3)]
    for postman in postmen:
        await postman.send_some()
    assert len(received.got) == 1


async def test_a_server_that_is_away_or_refuses_is_tried_again_later(
    office: Office, box: tuple[Box, MailSettings], tmp_path: Path
) -> None:
    received, settings = box
    nowhere = MailSettings(smtp_url=Secret("smtp://127.0.0.1:1"))
    await write(office)

    assert await Postman(office.pool, nowhere, tmp_path, office.desk.now).send_some() == 0
    postman = Postman(office.pool, settings, tmp_path, office.desk.now)
    assert await postman.send_some() == 0, "not at once"
    received.refuses = True
    office.clock.ahead += timedelta(seconds=3)
    assert await postman.send_some() == 0
    received.refuses = False
    office.clock.ahead += timedelta(seconds=5)
    assert await postman.send_some() == 1
    assert len(received.got) == 1


async def test_without_a_server_mails_land_as_files_that_only_their_owner_reads(
    office: Office, tmp_path: Path
) -> None:
    await write(office)
    outbox = tmp_path / "outbox"

    assert await Postman(office.pool, MailSettings(), outbox, office.desk.now).send_some() == 1

    (path,) = outbox.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert email.message_from_bytes(path.read_bytes())["To"] == "ada@example.com"


async def test_a_mail_of_a_transaction_that_came_to_nothing_is_never_sent(
    office: Office, tmp_path: Path
) -> None:
    async with office.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await post(connection, Mail("ada@example.com", "verify", FACTS), office.desk.now())
        await transaction.rollback()
    assert await Postman(office.pool, MailSettings(), tmp_path, office.desk.now).send_some() == 0


async def test_what_people_call_themselves_is_no_markup(office: Office) -> None:
    facts = {
        "site": "https://gate.example",
        "inviter": "<b>Eve</b>",
        "organization": "<script>",
        "role": "Admin",
        "days": 7,
        "link": "https://gate.example/invitation#x",
    }
    async with office.pool.acquire() as connection, connection.transaction():
        await post(connection, Mail("ada@example.com", "invitation", facts), office.desk.now())
    (mail,) = await office.mails_to("ada@example.com")
    assert "<script>" not in mail["html"]
    assert "&lt;b&gt;Eve" in mail["html"]
