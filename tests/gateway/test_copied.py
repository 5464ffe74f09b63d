"""A copy of what is sent: so much of it, and no more."""

from gateway.copied import SIDE_BYTES_MAX, Copy


def test_all_parts_are_kept_in_order() -> None:
    copy = Copy()
    for part in (b"one ", b"", b"two ", b"three"):
        copy.add(part)
    assert (copy.data, copy.is_cut) == (b"one two three", False)


def test_what_is_beyond_the_most_is_cut_and_said_so() -> None:
    copy = Copy()
    copy.add(b"x" * (SIDE_BYTES_MAX - 1))
    assert not copy.is_cut
    copy.add(b"yz")
    copy.add(b"more")
    assert (len(copy.data), copy.data[-1:], copy.is_cut) == (SIDE_BYTES_MAX, b"y", True)
