"""A real SMTP server for a story: everybody's mail lands here, and is read here."""

import asyncio
import email
import email.policy
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.message import EmailMessage

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

_PATIENCE_S = 20.0


class LetterBox:
    """What has arrived, the oldest first."""

    def __init__(self, url: str) -> None:
        self.url = url  # for `mail.smtp_url`
        self.letters: list[EmailMessage] = []

    async def handle_DATA(self, _: SMTP, __: Session, envelope: Envelope) -> str:  # noqa: N802 - its name
        assert isinstance(envelope.content, bytes)
        policy = email.policy.default
        self.letters.append(email.message_from_bytes(envelope.content, policy=policy))
        return "250 taken"

    async def letter(self, to: str, about: str) -> EmailMessage:
        """The newest letter to somebody with these words in its subject, once there is one."""
        async with asyncio.timeout(_PATIENCE_S):
            while not (found := self.letters_about(about, to=to)):
                await asyncio.sleep(0.02)
        return found[-1]

    def letters_about(self, about: str, *, to: str | None = None) -> Sequence[EmailMessage]:
        """Those with these words in their subjects so far; to somebody, or to anybody."""
        return [
            letter
            for letter in self.letters
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    box = LetterBox(f"smtp://127.0.0.1:{port}")
    server = Controller(box, hostname="127.0.0.1", port=port)
    server.start()
    try:
        yield box
    finally:
        server.stop()
