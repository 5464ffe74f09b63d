"""Mails that tell a person what was changed about the ways into their account.

Written in the transaction of the change: there is none without its mail. They go to the person's
own address, so that whoever else is at their account cannot change it unseen.
"""

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from gateway.management.desk import Desk
from gateway.management.mails import Mail
from gateway.management.mails import post as post_mail
from ledger.postgres import Connection

_EMAIL = "SELECT email FROM person WHERE id = $1"


class What(StrEnum):
    """What was changed, as the mail's subject says it."""

    PASSWORD_CHANGED = "Your password was changed"  # noqa: S105 - a subject
    SECOND_FACTOR_ADDED = "One-time passwords were set up for your account"
    SECOND_FACTOR_REMOVED = "One-time passwords were removed from your account"
    SECOND_FACTOR_RESET = "An operator reset the second factor of your account"
    PASSKEY_ADDED = "A passkey was added to your account"
    PASSKEY_REMOVED = "A passkey was removed from your account"
    PASSKEY_COPIED = "A passkey of your account may have been copied"
    IDENTITY_LINKED = "A way to sign in was added to your account"
    IDENTITY_REMOVED = "A way to sign in was removed from your account"
    RECOVERY_CODE_USED = "A recovery code of your account was used"
    RECOVERY_CODES_RENEWED = "Your account has new recovery codes"


class Notice(NamedTuple):
    """One change."""

    what: What
    address: str  # where it was asked from
    detail: str = ""  # a sentence more


async def post(desk: Desk, connection: Connection, person_id: UUID, told: Notice) -> None:
    """Write the mail to this person down; the caller has a transaction open."""
    await write(connection, person_id, told, site=desk.site, now=desk.now())


async def write(
    connection: Connection, person_id: UUID, told: Notice, *, site: str, now: datetime
) -> None:
    """The same for who has no desk."""
    assert connection.is_in_transaction(), "a notice stands or falls with its change"
    facts = {
        "site": site,
        "what": told.what.value,
        "detail": told.detail,
        "address": told.address,
        "at": now.strftime("%Y-%m-%d %H:%M UTC"),
    }
    email = await connection.fetchval(_EMAIL, person_id)
    await post_mail(connection, Mail(email, "notice", facts), now)
