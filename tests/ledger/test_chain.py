"""Rules of the hash chains."""

from ledger.chain import Audited, Posted, audit_hash, transaction_hash

POSTED = Posted(3, 7, "grant", "ref", "me", "why", 1_000, {"a": 5, "grant": -5})
AUDITED = Audited("org", 1, 1_000, "me", "key.revoke", "k", None, {"b": 1, "a": 2}, None)


def test_every_field_of_a_transaction_is_in_its_hash() -> None:
    plain = transaction_hash(b"", POSTED)
    changed = [
        POSTED._replace(partition=4),
        POSTED._replace(number=8),
        POSTED._replace(kind="payment"),
        POSTED._replace(reference="other"),
        POSTED._replace(actor="you"),
        POSTED._replace(reason="because"),
        POSTED._replace(at_us=1_001),
        POSTED._replace(lines={"a": 6, "grant": -6}),
    ]
    assert len({plain, *(transaction_hash(b"", one) for one in changed)}) == len(changed) + 1


def test_the_hash_covers_the_line_before() -> None:
    assert transaction_hash(b"", POSTED) != transaction_hash(b"x", POSTED)
    assert audit_hash(b"", AUDITED) != audit_hash(b"x", AUDITED)


def test_the_order_of_lines_and_of_json_members_does_not_matter() -> None:
    turned = POSTED._replace(lines={"grant": -5, "a": 5})
    assert transaction_hash(b"", turned) == transaction_hash(b"", POSTED)
    same = AUDITED._replace(after={"a": 2, "b": 1})
    assert audit_hash(b"", same) == audit_hash(b"", AUDITED)
