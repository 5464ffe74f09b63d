"""A real SMTP server for a story: everybody's mail lands here, and is read here."""

import asyncio
import email
import email.policy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.message import EmailMessage

from tests.gateway.management.post_box import Box, open_box

_PATIENCE_S = 20.0


class LetterBox:
    """What has arrived, the oldest first."""

    def __init__(self, box: Box, url: str) -> None:
        self._box = box
        self.url = url  # for `mail.smtp_url`

    async def letter(self, to: str, about: str) -> EmailMessage:
        """The newest letter to somebody with these words in its subject, once there is one."""
        async with asyncio.timeout(_PATIENCE_S):
            while not (found := self.letters_about(about, to=to)):
                await asyncio.sleep(0.02)
        return found[-1]

    def letters_about(self, about: str, *, to: str | None = None) -> Sequence[EmailMessage]:
        """Those with these words in their subjects so far; to somebody, or to anybody."""
        letters = (
            email.message_from_bytes(bytes(message), policy=email.policy.default)
            for message in list(self._box.got)
        )
        return [
            letter
            for letter in letters
            if about in letter["Subject"] and to in (None, letter["To"])
        ]


def text_of(letter: EmailMessage) -> str:
    """What stands in it, as text."""
    body = letter.get_body(("plain",))
    assert body is not None, "every mail comes as text, too"
    return str(body.get_content())


def link_in(letter: EmailMessage) -> tuple[str, str]:
    """Where its link leads, and the secret behind the #."""
    found = re.search(r"(http\S+)#(tg_\w+)", text_of(letter))
    assert found, text_of(letter)
    return found[1], found[2]


@contextmanager
def open_letter_box() -> Iterator[LetterBox]:
    """The server, while the block lasts."""
    with open_box() as (box, settings):
        assert settings.smtp_url is not None
        yield LetterBox(box, settings.smtp_url.reveal())
