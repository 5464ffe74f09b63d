"""What an error lets the caller decide."""

from gateway.upstream.errors import (
    UpstreamBusy,
    UpstreamCut,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)


def test_what_was_never_sent_can_always_be_sent_elsewhere() -> None:
    assert not UpstreamRefused("x").sent
    assert not UpstreamBusy("x").sent


def test_only_what_took_too_long_is_a_timeout() -> None:
    late: set[type[UpstreamError]] = {UpstreamBusy, UpstreamTimeout}
    kinds: set[type[UpstreamError]] = {UpstreamRefused, UpstreamUnreachable}
    kinds |= {UpstreamCut, UpstreamGarbled} | late
    assert {kind for kind in kinds if kind.timeout} == late
    assert all(issubclass(kind, UpstreamError) for kind in kinds)


def test_the_facts_are_kept_as_given() -> None:
    error = UpstreamCut("cut", phase="head", sent=True, reused=True, answered=False)
    assert (str(error), error.phase) == ("cut", "head")
    assert (error.sent, error.reused, error.answered) == (True, True, False)
