"""What a payment processor does for us: the contract that `stripe` and `sandbox` fulfil.

Whatever is asked twice under one id is done once, or `find` tells what became of it: a process may
die, and an answer be lost, between any two steps. Money stands in the smallest coin of a currency.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Protocol


class MethodKind(StrEnum):
    """What money is taken from."""

    CARD = "card"
    US_BANK_ACCOUNT = "us_bank_account"  # ACH
    SEPA_DEBIT = "sepa_debit"


class Progress(StrEnum):
    """How far a payment is, at the processor's."""

    OPEN = "open"  # the payer has not paid yet
    PROCESSING = "processing"  # a bank takes days
    PAID = "paid"  # for good; what is given back later is a refund
    DECLINED = "declined"  # for good, too


class Coins(NamedTuple):
    """An amount as processors take it."""

    amount: int  # in the smallest coin
    currency: str  # "usd", "eur"


class Order(NamedTuple):
    """What is to be paid, and by whom."""

    id: str  # ours; the same for every try, and for no other payment ever
    customer: str
    coins: Coins
    says: str  # what the payer reads
    began_at: datetime  # no try was before it
    method: str | None = None  # to be charged without its owner; None: by a page, see `checkout`
    method_kind: MethodKind | None = None
    reference: str | None = None  # the processor's id of the payment, once known
    checkout: str | None = None  # and of the page


class Payment(NamedTuple):
    """What became of an order."""

    order: str
    progress: Progress
    coins: Coins
    reference: str | None = None  # the processor's id: always there once it is paid
    checkout: str | None = None
    url: str | None = None  # where the payer pays, while it is open
    decline: str | None = None  # why it was declined, in the processor's word
    is_hard: bool = False  # trying again is of no use


class Setup(NamedTuple):
    """A method being entered at the processor's."""

    id: str
    client_secret: str  # lets the payer's browser enter it, and nothing else


class Method(NamedTuple):
    """A method that is saved there and can be charged."""

    reference: str
    kind: MethodKind
    brand: str  # "visa", or the bank's name
    last4: str
    expires: str | None = None  # "2030-04", of cards


class Returned(NamedTuple):
    """Money that goes back to the payer."""

    reference: str
    progress: Progress  # paid: to the payer. declined: the money stays with us


class Document(NamedTuple):
    """An invoice or receipt that the processor made."""

    reference: str
    order: str | None  # ours, if it is for one
    number: str
    coins: Coins
    at: datetime
    url: str | None


class Event(NamedTuple):
    """Something the processor told by itself."""

    id: str
    kind: str
    payment: Payment | None  # None: nothing that concerns us


class ProcessorAway(Exception):
    """No answer, or none that tells: it may or may not be done. Ask with `find`, or again."""


class ProcessorRefused(Exception):
    """It is certainly not done, and asking the same again would end the same."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class Forged(Exception):
    """What claims to be an event is not from the processor, or is too old."""


class Processor(Protocol):
    """One account at one company. Every method may raise `ProcessorAway` and `ProcessorRefused`."""

    @property
    def name(self) -> str:
        """Stands in every row that belongs to it."""
        ...

    @property
    def publishable_key(self) -> str:
        """What browsers enter methods with; "" where they enter none."""
        ...

    async def customer(self, owner_id: str, *, email: str, name: str) -> str:
        """Make somebody known; their id there."""
        ...

    async def start_setup(self, method_id: str, *, customer: str, kind: MethodKind) -> Setup:
        """Let a payer enter a method of this kind; `method_id` is ours, for asking again."""
        ...

    async def finish_setup(self, setup: str, *, customer: str, entered: str | None) -> Method:
        """The method that was entered. `entered` is what the sandbox takes instead of a card."""
        ...

    async def remove(self, method: str) -> None:
        """Forget a method; one that is not there is no error."""
        ...

    async def charge(self, order: Order) -> Payment:
        """Take the money from the order's method, its owner being away."""
        ...

    async def checkout(self, order: Order, *, back_url: str) -> Payment:
        """A page on which the payer pays; they come back to `back_url` then."""
        ...

    async def find(self, order: Order) -> Payment | None:
        """What became of an order; None: the processor has taken nothing for it, and was not asked
        to by any request that it has finished."""
        ...

    async def refund(self, refund_id: str, *, payment: str, coins: Coins) -> Returned:
        """Give a part or all of a payment back, once for each id."""
        ...

    async def documents(self, customer: str) -> tuple[Document, ...]:
        """The latest invoices it made for somebody, newest first."""
        ...

    async def receipt(self, payment: str) -> str | None:
        """Where the payer reads what was charged; None: it makes none."""
        ...

    def event(self, body: bytes, headers: Mapping[str, str], *, now: datetime) -> Event:
        """What was told; raises `Forged`. Nothing of it is believed but by its signature."""
        ...
