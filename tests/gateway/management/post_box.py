"""A real SMTP server on a socket, which keeps what it is given."""

import email
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from gateway.settings import MailSettings
from providers.adapter import Secret


class Box:
    """The server's end: it keeps what it is given, or refuses."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.refuses = False

    async def handle_DATA(self, _: SMTP, __: Session, envelope: Envelope) -> str:  # noqa: N802 - its name
        if self.refuses:
            return "451 try again later"
        assert isinstance(envelope.content, bytes)
        self.got.append(email.message_from_bytes(envelope.content))
        return "250 taken"


@contextmanager
def open_box() -> Iterator[tuple[Box, MailSettings]]:
    """The server, and how to send to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    box = Box()
    server = Controller(box, hostname="127.0.0.1", port=port)
    server.start()
    try:
        url = Secret(f"smtp://127.0.0.1:{port}")
        yield box, MailSettings(smtp_url=url, sender="Gate <gate@gate.example>")
    finally:
        server.stop()
