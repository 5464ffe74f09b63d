"""What the handlers of the management API work on."""

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

import asyncpg
from redis.asyncio import Redis

from gateway.display import DisplayUnit
from gateway.key_cache import KeyCache
from gateway.management.issuers import Issuers
from gateway.management.passwords import Passwords
from gateway.payments.processor import Processor
from gateway.policy import Policy
from gateway.rest.rates import Rates
from gateway.sealing import Sealer
from gateway.settings import Config


class Desk(NamedTuple):
    """Stores, clock, chance and secrets."""

    config: Config
    pool: asyncpg.Pool
    redis: Redis
    cache: KeyCache
    now: Callable[[], datetime]  # UTC
    random_bytes: Callable[[int], bytes]
    digest: Callable[[str], bytes]  # of keys, tokens and cookies
    sealer: Sealer
    passwords: Passwords
    rates: Rates
    issuers: Issuers
    processor: Processor | None = None  # None: nothing can be bought

    @property
    def site(self) -> str:
        """How browsers reach this installation, without a slash at its end."""
        return self.config.management.public_url.rstrip("/")

    def unit_of(self, policy: Policy) -> DisplayUnit:
        """In what an organization with this policy reads its money."""
        if policy.display_unit is not None:
            return policy.display_unit
        own = self.config.credits
        return DisplayUnit(name=own.unit, per_usd=own.per_usd, decimals=own.decimals)
