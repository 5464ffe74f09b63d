"""The processor that config.yaml chooses."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import assert_never

import asyncpg

from gateway.payments import stripe
from gateway.payments.processor import Processor
from gateway.payments.sandbox import Sandbox
from gateway.payments.settings import PaymentProcessor, Payments


@asynccontextmanager
async def processor(
    payments: Payments, pool: asyncpg.Pool, *, now: Callable[[], datetime], site: str
) -> AsyncIterator[Processor | None]:
    """It, until the block is left; None: nothing can be bought."""
    match payments.processor:
        case PaymentProcessor.NONE:
            yield None
        case PaymentProcessor.SANDBOX:
            yield Sandbox(pool, now, site)
        case PaymentProcessor.STRIPE:
            account = payments.stripe
            assert account.secret_key is not None, "config.py has asked for it"
            assert account.publishable_key is not None, "config.py has asked for it"
            assert account.webhook_secret is not None, "config.py has asked for it"
            keys = (account.secret_key, account.publishable_key, account.webhook_secret)
            async with stripe.opened(*keys, account.api_url) as opened:
                yield opened
        case _:
            assert_never(payments.processor)
