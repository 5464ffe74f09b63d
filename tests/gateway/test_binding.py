"""Texts become the values their settings want, or mistakes that say what is wanted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pytest

from gateway.binding import Binder, path_text
from gateway.bounds import Between, Endpoint, Format
from gateway.config import ConfigErrors, read
from gateway.document import Mistake, overridden, parse
from providers.adapter import Secret


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    name: str
    count: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    whole: int = 0
    bounded: Annotated[int, Between(1, 10)] = 5
    number: float = 0.0
    flag: bool = False
    text: str = ""
    colour: Colour = Colour.RED
    path: Path | None = None
    secret: Annotated[Secret, Between(8, 100)] | None = None
    url: Endpoint | None = None
    size: Annotated[int, Format.SIZE] = 0
    price: Annotated[int, Format.USD] = 0
    date: Annotated[int, Format.DATE] = 0
    inner: Inner | None = None
    several: tuple[Inner, ...] = ()
    named: Mapping[str, Inner] = field(default_factory=dict)


def bound(text: str, **environ: str) -> tuple[Any, list[Mistake]]:
    root, mistakes = parse(text)
    assert mistakes == []
    binder = Binder(environ)
    root = overridden(root, environ, sections=[])
    return binder.record(Sample, root), binder.mistakes


def value(text: str, **environ: str) -> Any:
    sample, mistakes = bound(text, **environ)
    assert mistakes == []
    return getattr(sample, text.partition(":")[0])


def mistake(text: str, **environ: str) -> str:
    _, [found] = bound(text, **environ)
    return found.message


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("whole: 1_000", 1000),
        ("whole: -3", -3),
        ("number: 0.3", 0.3),
        ("number: 5", 5.0),
        ("flag: true", True),
        ("flag: False", False),
        ("text: 4.10", "4.10"),
        ("text: no", "no"),
        ("colour: green", Colour.GREEN),
        ("path: /srv/data", Path("/srv/data")),
        ("path: null", None),
        ("size: 4096", 4096),
        ("size: 64 MiB", 64 * 1024 * 1024),
        ("size: 2GiB", 2 * 1024**3),
        ("date: 2026-01-01", 1_767_225_600),
        ("date: 2026-01-01T01:00+01:00", 1_767_225_600),
        ("date: 2026-01-01T00:00:00Z", 1_767_225_600),
        ("inner: {name: x}", Inner(name="x")),
        ("several: [{name: x}, {name: y, count: 1}]", (Inner(name="x"), Inner(name="y", count=1))),
        ("named: {a.b: {name: x}}", {"a.b": Inner(name="x")}),
        ("url: https://API.example.com/v1/", Endpoint("https", "api.example.com", 443, "/v1")),
        ("url: http://[::1]:8000", Endpoint("http", "::1", 8000, "")),
    ],
)
def test_a_text_becomes_what_its_setting_wants(text: str, wanted: object) -> None:
    assert value(text) == wanted


@pytest.mark.parametrize(
    ("usd", "nanos"),
    [("0.1", 100_000_000), ("2.675", 2_675_000_000), ("0.000000001", 1), ("1e-3", 1_000_000)],
)
def test_a_price_is_exact_to_the_nano_usd_whether_quoted_or_not(usd: str, nanos: int) -> None:
    assert value(f"price: {usd}") == value(f"price: '{usd}'") == nanos


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("whole: 1.5", "must be a whole number"),
        ("whole: 0x10", "must be a whole number"),
        ("whole: [1]", "must be one value"),
        ("whole:", "has no value"),
        ("bounded: 11", "must be between 1 and 10"),
        ("number: nan", "must be a number"),
        ("number: 1e400", "must be a number"),
        ("flag: yes", "must be true or false"),
        ("colour: gren", "must be one of red, green; did you mean 'green'?"),
        ('text: "a\\nb"', "contains a line break or another control character"),
        ("secret: short", "must have between 8 and 100 characters"),
        ("size: 5 MB", "must be a whole number of bytes, or one with KiB, MiB or GiB"),
        ("price: 0.0000000001", "'0.0000000001' USD is finer than a nano-USD"),
        ("price: -1", "must not be negative"),
        ("price: nan", "'nan' is not an amount in USD"),
        ("date: soon", "must be a date such as 2026-01-31, or 2026-01-31T12:00Z"),
        ("inner: {count: 1}", "'name' is missing"),
        ("inner: 5", "must be settings of its own, `key: value` each"),
        ("several: {name: x}", "must be a list"),
        ("collour: red", "unknown setting; did you mean 'colour'?"),
    ],
)
def test_a_text_that_does_not_fit_is_told_what_would(text: str, said: str) -> None:
    assert mistake(text) == said


@pytest.mark.parametrize(
    "url",
    [
        "api.example.com/v1",
        "ftp://example.com",
        "https://",
        "https://user:canary@example.com",
        "https://example.com/?key=canary",
        "https://example.com/#canary",
        "https://example.com:0",
        "https://example.com:99999",
        "https://exa mple.com",
        "https://example.com\\@evil.example",
        "https://exa%6dple.com",
    ],
)
def test_a_url_that_could_lead_elsewhere_is_refused_and_not_repeated(url: str) -> None:
    said = mistake(f"url: '{url}'")
    assert "canary" not in said
    assert "example" not in said


def test_every_mistake_is_listed_with_its_line_and_path() -> None:
    _, mistakes = bound("whole: x\nseveral:\n  - name: a\n  - count: y\nnamed: {a.b: {nam: c}}\n")
    assert {(found.line, found.path) for found in mistakes} == {
        (1, "whole"),
        (4, "several[1]"),
        (4, "several[1].count"),
        (5, 'named."a.b"'),
        (5, 'named."a.b".nam'),
    }


def test_a_reference_stands_for_its_variable_in_secrets_and_urls() -> None:
    assert value("secret: ${A_KEY}", A_KEY="12345678").reveal() == "12345678"
    assert value("url: https://${SITE}.example.com", SITE="eu").host == "eu.example.com"


def test_a_reference_anywhere_else_is_a_mistake() -> None:
    assert mistake("text: ${HOME}", HOME="/root") == "${...} is read in secrets and URLs only"


@pytest.mark.parametrize("environ", [{}, {"A_KEY": ""}])
def test_a_reference_to_a_variable_that_is_not_set_is_noted(environ: dict[str, str]) -> None:
    root, _ = parse("secret: ${A_KEY}")
    binder = Binder(environ)
    binder.record(Sample, root)
    assert binder.unset == {("secret",): "A_KEY"}
    assert binder.mistakes == []


def test_a_secret_from_the_environment_is_taken_as_it_is() -> None:
    password = "a: #b ${C} 'd'"
    root = overridden(parse("secret: x")[0], {"TOLLGATE_SECRET": password}, sections=["secret"])
    assert Binder({}).record(Sample, root).secret.reveal() == password


def test_a_list_from_the_environment_is_yaml() -> None:
    root = overridden(
        parse("")[0], {"TOLLGATE_SEVERAL": "[{name: x, count: 2}]"}, sections=["several"]
    )
    assert Binder({}).record(Sample, root).several == (Inner(name="x", count=2),)


def test_a_mistake_from_the_environment_names_its_variable() -> None:
    root = overridden(parse("")[0], {"TOLLGATE_INNER__COUNT": "x"}, sections=[])
    binder = Binder({})
    binder.record(Sample, root)
    assert "TOLLGATE_INNER__COUNT: must be a whole number" in [m.message for m in binder.mistakes]


def test_an_empty_variable_means_the_default_of_what_may_be_none() -> None:
    root = overridden(parse("path: /srv")[0], {"TOLLGATE_PATH": ""}, sections=["path"])
    assert Binder({}).record(Sample, root).path is None


def test_a_path_is_written_as_its_author_would_look_for_it() -> None:
    assert path_text(("models", "gpt-4.1", "targets", 0)) == 'models."gpt-4.1".targets[0]'


def test_a_secret_in_a_variable_stands_in_no_file_that_others_may_read() -> None:
    provider = '{kind: custom, base_url: "https://a.example", api_key: canary}'
    found = read("", {"TOLLGATE_PROVIDERS__OWN": provider}, is_private=False)
    assert found.providers["own"].api_key.reveal() == "canary"
    with pytest.raises(ConfigErrors, match="api_key: is a secret in a file"):
        read(f"providers: {{own: {provider}}}", {}, is_private=False)
