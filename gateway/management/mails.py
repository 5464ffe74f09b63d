"""Mail: written in the transaction of what it tells of, and sent afterwards by a job.

Without an SMTP server the mails land as files in `<data_dir>/outbox`, and the log says so. A mail
that cannot be sent is tried again, later and later, for three days; calls never wait for one.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import aiosmtplib
import asyncpg
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from gateway.settings import MailSettings
from ledger.postgres import Connection

log = logging.getLogger(__name__)

_BATCH = 20
_SMTP_S = 30.0
_TRIES_MAX = 60
_PAUSE_MAX = timedelta(hours=1)

_WRITE = """
    INSERT INTO mail (recipient, subject, text, html, created_at, next_at)
    VALUES ($1, $2, $3, $4, $5, $5)
"""
# Held for the time of a try, so that two control processes never send one at the same time.
_TAKE = """
    UPDATE mail SET next_at = $1 + interval '5 minutes', tries = tries + 1
    WHERE id IN (
        SELECT id FROM mail WHERE sent_at IS NULL AND next_at <= $1 AND tries < $2
        ORDER BY next_at LIMIT $3 FOR UPDATE SKIP LOCKED
    )
    RETURNING id, recipient, subject, text, html, created_at, tries
"""
_SENT = "UPDATE mail SET sent_at = $2, error = NULL WHERE id = $1"
_FAILED = "UPDATE mail SET error = $2, next_at = $3 WHERE id = $1"

TEMPLATES = Environment(
    loader=PackageLoader("gateway.management", "templates"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Mail(NamedTuple):
    """A mail to one recipient."""

    recipient: str
    template: str  # templates/<template>.txt and .html
    facts: dict[str, Any]


async def post(connection: Connection, mail: Mail, now: datetime) -> None:
    """Write it down; it is sent once the transaction is committed."""
    subject, _, text = _rendered(f"{mail.template}.txt", mail.facts).partition("\n\n")
    html = _rendered(f"{mail.template}.html", mail.facts)
    assert subject.startswith("Subject: "), f"{mail.template}.txt begins with its subject"
    await connection.execute(
        _WRITE, mail.recipient, subject.removeprefix("Subject: "), text, html, now
    )


class Postman:
    """Sends what is waiting."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        settings: MailSettings,
        outbox: Path,
        now: Callable[[], datetime],
    ) -> None:
        self._pool, self._settings, self._outbox, self._now = pool, settings, outbox, now

    async def send_some(self) -> int:
        """Try the next few; how many were sent."""
        rows = await self._pool.fetch(_TAKE, self._now(), _TRIES_MAX, _BATCH)
        sent = 0
        for row in rows:
            try:
                await self._send(row)
            except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
                pause = min(timedelta(seconds=2 ** min(row["tries"], 20)), _PAUSE_MAX)
                await self._pool.execute(_FAILED, row["id"], str(error), self._now() + pause)
                said = {"mail": row["id"], "tries": row["tries"], "reason": type(error).__name__}
                log.warning("mail not sent", extra={"cause": "mail", **said})
            else:
                await self._pool.execute(_SENT, row["id"], self._now())
                sent += 1
        return sent

    async def _send(self, row: asyncpg.Record) -> None:
        message = EmailMessage()
        message["From"], message["To"] = self._settings.sender, row["recipient"]
        message["Subject"] = row["subject"]
        message["Date"] = format_datetime(row["created_at"])
        # The same for every try: a server that took one whose answer was lost can tell.
        message["Message-ID"] = f"<{row['id']}.{row['created_at'].timestamp():.0f}@tollgate>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(row["text"])
        message.add_alternative(row["html"], subtype="html")
        if self._settings.smtp_url is None:
            await asyncio.to_thread(self._keep, row["id"], message)
            return
        url = urlsplit(self._settings.smtp_url.reveal())
        await aiosmtplib.send(
            message,
            hostname=url.hostname,
            port=url.port,
            username=unquote(url.username) if url.username else None,
            password=unquote(url.password) if url.password else None,
            use_tls=url.scheme == "smtps",
            timeout=_SMTP_S,
        )

    def _keep(self, number: int, message: EmailMessage) -> None:
        """As a file that any mail program opens; it may hold a link, so only its owner reads it."""
        self._outbox.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._outbox / f"{number:08d}.eml"
        draft = path.with_suffix(".new")
        draft.touch(mode=0o600)
        draft.write_bytes(bytes(message))
        draft.replace(path)
        said = {"path": str(path), "to": message["To"], "subject": message["Subject"]}
        log.info("mail kept as a file: no mail.smtp_url is set", extra=said)


def _rendered(name: str, facts: dict[str, Any]) -> str:
    return TEMPLATES.get_template(name).render(facts).strip() + "\n"
