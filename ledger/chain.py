"""Hash chains: what makes a change to an old line of the book show.

Each line's hash covers the hash before it and every field of its own. Pure: what is stored where is
the callers' business.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

_pack = msgspec.msgpack.Encoder(order="sorted").encode


class Posted(NamedTuple):
    """One ledger transaction, without its place in the chain. Its lines sum to zero."""

    partition: int
    number: int
    kind: str
    reference: str
    actor: str
    reason: str
    at_us: int  # unix microseconds
    lines: Mapping[str, int]  # account -> amount


class Audited(NamedTuple):
    """One line of an organization's audit log, without its place in the chain."""

    organization_id: str
    number: int
    at_us: int  # unix microseconds
    actor: str
    action: str
    target: str
    before: Mapping[str, object] | None
    after: Mapping[str, object] | None
    address: str | None


def transaction_hash(previous: bytes, posted: Posted) -> bytes:
    """The hash of this transaction after the one whose hash is `previous`."""
    return _hash(previous, (*posted[:-1], sorted(posted.lines.items())))


def audit_hash(previous: bytes, audited: Audited) -> bytes:
    """The hash of this line after the one whose hash is `previous`."""
    return _hash(previous, audited)


def _hash(previous: bytes, fields: Iterable[object]) -> bytes:
    return hashlib.sha256(_pack((previous, *fields))).digest()
