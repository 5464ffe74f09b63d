"""Tells one client of an organization from another without keeping who it is.

The id is a keyed hash under a salt of the organization: it counts distinct clients, cannot be
turned back into a name or an address, and cannot be compared between organizations.
"""

import hmac
from hashlib import blake2b

from gateway.proxy.live import LiveCall
from providers.adapter import Secret

_SALTS_MAX = 10_000
_ID_BYTES = 8


class Clients:
    """Makes the ids."""

    def __init__(self, pepper: Secret) -> None:
        self._pepper = pepper.reveal().encode()
        self._salts: dict[str, bytes] = {}

    def id_of(self, live: LiveCall) -> str:
        """The client of this call, by the name its application gives it, else by where it is."""
        exchange, user = live.exchange, live.call.user
        organization_id = live.principal.organization_id
        if user:
            return self._id(organization_id, f"u:{user}")
        memory, agent = exchange.memory, exchange.header("user-agent") or ""
        known_organization_id, known_agent, client_id = memory.client
        if known_organization_id != organization_id or known_agent != agent:
            client_id = self._id(organization_id, f"a:{memory.peer}:{agent}")
            memory.client = (organization_id, agent, client_id)
        return client_id

    def _id(self, organization_id: str, who: str) -> str:
        salt = self._salt(organization_id)
        return blake2b(who.encode(errors="replace"), key=salt, digest_size=_ID_BYTES).hexdigest()

    def _salt(self, organization_id: str) -> bytes:
        salt = self._salts.get(organization_id)
        if salt is None:
            if len(self._salts) >= _SALTS_MAX:
                self._salts.clear()
            salt = hmac.digest(self._pepper, f"client:{organization_id}".encode(), "sha256")
            self._salts[organization_id] = salt
        return salt
