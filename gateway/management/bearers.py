"""The texts that stand for somebody at the management API: cookies, tokens, links, invitations.

Each is `tg_<kind>_` + 43 characters of base62 (256 random bits). None is stored: a row has its
digest. None can pass for another kind, because the digest is of the whole text.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from gateway.keys import base62
from providers.adapter import Secret

RANDOM_BYTES = 32
_CHARACTERS = 43


class BearerKind(StrEnum):
    """What a text is for."""

    SESSION = "session"
    PERSONAL = "pat"  # a person's own token
    ORGANIZATION = "org"  # an organization's token
    LINK = "link"  # a link that is mailed or printed
    INVITATION = "invite"

    @property
    def prefix(self) -> str:
        """How its texts begin."""
        return f"tg_{self.value}_"


class NewBearer(NamedTuple):
    """One just made. Its text is handed over once."""

    secret: Secret
    digest: bytes
    last4: str


def issue(
    kind: BearerKind, random_bytes: Callable[[int], bytes], digest: Callable[[str], bytes]
) -> NewBearer:
    """A new text of this kind."""
    characters = base62(random_bytes(RANDOM_BYTES))
    text = kind.prefix + characters
    return NewBearer(Secret(text), digest(text), characters[-4:])


def kind_of(text: str) -> BearerKind | None:
    """What this text can be; None: nothing of ours. Looks nothing up."""
    for kind in BearerKind:
        if text.startswith(kind.prefix):
            rest = text[len(kind.prefix) :]
            whole = len(rest) == _CHARACTERS and rest.isascii() and rest.isalnum()
            return kind if whole else None
    return None
