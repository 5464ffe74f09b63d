"""Where else people sign in: the issuers of OpenID Connect of `management.sign_in`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from providers.adapter import Secret

ISSUER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}\Z")  # it is part of a URL


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """One issuer. Without `client_secret` it knows us as a public client."""

    name: str
    issuer: str
    client_id: str
    client_secret: Secret | None = None
    scopes: tuple[str, ...] = ("openid", "email", "profile")
    trust_emails: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it is asked without TLS."""
        return urlsplit(self.issuer).scheme == "http"


def mistakes(issuers: Sequence[Issuer]) -> Iterator[tuple[int, str, str]]:
    """What is wrong with them: the place in the list, the setting and what it must be."""
    for place, one in enumerate(issuers):
        if not ISSUER_NAME.match(one.name):
            yield place, "name", "must have lower-case letters, digits and dashes: at most 40"
        if one.name in {other.name for other in issuers[:place]}:
            yield place, "name", f"{one.name!r} is the name of another issuer"
        if one.issuer in {other.issuer for other in issuers[:place]}:
            yield place, "issuer", "is another entry's, too"
        if (wrong := _wrong_url(one.issuer)) is not None:
            yield place, "issuer", wrong
        if "openid" not in one.scopes:
            yield place, "scopes", "must have openid, and email unless the issuer always tells it"


def _wrong_url(text: str) -> str | None:
    parts = urlsplit(text)
    if parts.scheme not in {"https", "http"} or not parts.hostname or parts.query or parts.fragment:
        return "must be the issuer's URL, such as https://accounts.google.com"
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        return "must begin with https://: what it says lets people in"
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
