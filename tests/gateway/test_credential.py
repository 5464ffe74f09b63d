"""What clients present as a key, and how it is refused."""

import pytest

from gateway.credential import AuthError, Reason, Shown, key_in, presented
from gateway.errors import BadRequest, body
from gateway.keys import issue

KEY = issue(bytes(32)).secret.reveal()


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER   {KEY} ", KEY])
def test_a_key_is_read_with_and_without_its_scheme(header: str) -> None:
    assert key_in(header) == KEY


@pytest.mark.parametrize("header", [None, ""])
def test_without_a_header_the_key_is_missing(header: str | None) -> None:
    with pytest.raises(AuthError) as caught:
        key_in(header)
    assert (caught.value.reason, caught.value.status) == (Reason.MISSING, 401)
    assert caught.value.code == "missing_api_key"


@pytest.mark.parametrize(
    "header",
    [
        "Bearer ",
        "Bearer",
        "Bearer ' OR '1'='1",
        "Bearer '||pg_sleep(6)||'",
        f"Bearer {KEY}\0",
        f"Bearer {KEY}\r\nX-Admin: 1",
        f"Bearer {KEY} {KEY}",
        "Bearer " + "A" * 65_536,
        "Bearer tg_live_" + "ключ" * 12,
        f"Basic {KEY}",
        "sk-proj-of-another-vendor",
    ],
)
def test_what_can_be_no_key_is_malformed(header: str) -> None:
    with pytest.raises(AuthError) as caught:
        key_in(header)
    assert caught.value.reason is Reason.MALFORMED


def test_a_client_cannot_tell_malformed_unknown_revoked_and_expired_apart() -> None:
    wrong = [Reason.MALFORMED, Reason.UNKNOWN, Reason.REVOKED, Reason.EXPIRED]
    answers = {(body(AuthError(why)), str(AuthError(why).headers)) for why in wrong}
    assert len(answers) == 1
    assert b"tg_live" not in next(iter(answers))[0]


def test_authorization_stands_before_x_api_key() -> None:
    assert presented("Bearer a", "b") == "Bearer a"
    assert presented(None, "b") == "b"
    assert presented("", "b") == "b"
    assert presented(None, None) is None


def test_a_key_in_the_url_is_refused_even_beside_a_good_header() -> None:
    with pytest.raises(BadRequest) as caught:
        presented(f"Bearer {KEY}", None, query=f"key={KEY}")
    assert caught.value.code == "api_key_in_url"
    assert KEY not in str(caught.value)


def test_a_connection_remembers_a_few_headers_by_their_whole_text() -> None:
    shown = Shown()
    shown.add(f"Bearer {KEY}", b"digest")

    assert shown.digest_of(f"Bearer {KEY}") == b"digest"
    for other in (None, "", KEY, f"Bearer {KEY} ", f"Bearer {KEY[:-1]}"):
        assert shown.digest_of(other) is None

    for number in range(100):
        shown.add(f"Bearer {number}", b"other")
    assert sum(shown.digest_of(f"Bearer {number}") is not None for number in range(100)) <= 8
