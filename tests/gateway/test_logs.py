"""Every outcome is one line of JSON that holds no secret, and nobody waits for its reader."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.logs import Lines, LinesHandler, LineWriter, install, set_level
from providers.adapter import Secret

SECRETS = [
    "tg_live_0123456789abcdefghijABCDEFGHIJ0123456789abc_1a2b3c",
    "sk-proj-abcDEF123456",
    "sk-ant-api03-abcdefgh",
    "gsk_abcdefgh1234",
    "hf_abcdefgh1234",
    "xai-abcdefgh1234",
    "AIzaSyA-abcdefghijklmnopqrstu",
    "AKIAABCDEFGHIJKLMNOP",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc",
]


class Collected:
    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.lines = Lines(self.raw.append, process="worker-0", wall_s=lambda: 1_767_225_600.25)

    @property
    def last(self) -> dict[str, Any]:
        line = self.raw[-1]
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        read: dict[str, Any] = orjson.loads(line)
        return read


@pytest.fixture
def log() -> Collected:
    return Collected()


class TestALine:
    def test_says_when_who_and_what(self, log: Collected) -> None:
        log.lines.event("key revoked", {"key": "k1", "count": 3}, level="warning")
        assert log.last == {
            "time": "2026-01-01T00:00:00.250Z",
            "level": "warning",
            "process": "worker-0",
            "event": "key revoked",
            "key": "k1",
            "count": 3,
        }

    def test_of_a_call_is_the_same(self, log: Collected) -> None:
        log.lines.outcome("call ended", {"call": "c1", "charge_nanos": 5}, {"model": "gpt-5"})
        assert log.last == {
            "time": "2026-01-01T00:00:00.250Z",
            "level": "info",
            "process": "worker-0",
            "event": "call ended",
            "call": "c1",
            "charge_nanos": 5,
            "model": "gpt-5",
        }

    @given(st.lists(st.tuples(st.text(), st.text()), max_size=4), st.floats(0, 2e9))
    def test_of_a_call_that_ended_is_the_same_as_of_any_other(
        self, told: list[tuple[str, str]], at_s: float
    ) -> None:
        raw: list[bytes] = []
        lines = Lines(raw.append, process='odd "%" é', wall_s=lambda: at_s)
        for model, code in [*told, *told]:
            raw.clear()
            lines.ended('"call":"c1","charge_nanos":5', model, code)
            fields = {"model": model, "code": code} if code else {"model": model}
            lines.outcome("call ended", {"call": "c1", "charge_nanos": 5}, fields)
            assert raw[0] == raw[1]

    @given(st.text(), st.dictionaries(st.text(min_size=1), st.text(), max_size=4))
    def test_is_one_line_whatever_is_in_it(self, event: str, told: dict[str, str]) -> None:
        log = Collected()
        log.lines.event(event, told)
        log.lines.outcome("call ended", {}, told)
        for line in log.raw:
            assert orjson.loads(line)
            assert line.count(b"\n") == 1

    @pytest.mark.parametrize("value", [2**70, "\ud800", b"bytes", {1, 2}, float("nan"), 1 + 2j])
    def test_never_fails_for_an_odd_value(self, log: Collected, value: object) -> None:
        log.lines.event("odd", {"value": value, "nested": [{"inner": value}]})
        assert log.last["event"] == "odd"

    def test_shows_no_value_it_does_not_know(self, log: Collected) -> None:
        @dataclass
        class Prompt:
            text: str

        log.lines.event("odd", {"prompt": Prompt("canary"), "key": Secret("canary")})
        assert (log.last["prompt"], log.last["key"]) == ("<Prompt>", "<Secret>")
        assert b"canary" not in log.raw[-1]

    def test_that_grew_too_long_is_cut_value_by_value(self, log: Collected) -> None:
        log.lines.event("long", {"text": "x" * 1_000_000, "list": ["y" * 1_000_000] * 100})
        assert len(log.raw[-1]) < 16 * 1024
        assert log.last["text"] == "x" * 500


class TestSecrets:
    @pytest.mark.parametrize("secret", SECRETS)
    @pytest.mark.parametrize("around", ["{}", "key={}", '"{}"', "line\n{}\nline", "a {} b", "({})"])
    def test_are_masked_wherever_they_stand(self, log: Collected, secret: str, around: str) -> None:
        text = around.format(secret)
        log.lines.event(text, {"value": text, "list": [{"inner": text}], text: 1})
        log.lines.outcome(text, {}, {"model": text})
        for _ in range(2):  # the second time it is remembered
            log.lines.ended('"call":"c1"', text, text)
        assert secret.encode() not in b"".join(log.raw)
        assert len(log.raw) == 4

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("Authorization: Bearer abc.def", "Authorization: [secret]"),
            ("authorization: BEARER abc", "authorization: [secret]"),
            ("bearer%20abc", "[secret]"),
            ("redis://user:pass@host:6379/0", "redis://[secret]@host:6379/0"),
            ("https://example.com/a@b", "https://example.com/a@b"),
            ("disk-full, task_done, risk-based", "disk-full, task_done, risk-based"),
        ],
    )
    def test_in_headers_and_urls_are_masked_and_plain_words_are_not(
        self, log: Collected, text: str, shown: str
    ) -> None:
        log.lines.event("told", {"text": text})
        assert log.last["text"] == shown

    def test_that_are_configured_are_masked_whatever_they_look_like(self, log: Collected) -> None:
        odd = 'canary "with" \\ and é'
        log.lines.know_secrets([odd, "canary-1", "canary-1-and-more", "short"])
        log.lines.event(
            "told", {"a": odd, "b": "xcanary-1x", "c": "canary-1-and-more", "d": "short"}
        )
        shown = {key: log.last[key] for key in "abcd"}
        assert shown == {"a": "[secret]", "b": "x[secret]x", "c": "[secret]", "d": "short"}

    def test_that_become_known_are_masked_in_what_was_seen_before(self, log: Collected) -> None:
        log.lines.ended('"call":"c1"', "canary-1", "")
        log.lines.know_secrets(["canary-1"])
        log.lines.ended('"call":"c1"', "canary-1", "")
        assert log.last["model"] == "[secret]"


class TestLogging:
    @pytest.fixture
    def logger(self, log: Collected) -> Iterator[logging.Logger]:
        logger = logging.getLogger("gateway.sample")
        handler = LinesHandler(log.lines)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        yield logger
        logger.removeHandler(handler)
        logger.propagate = True

    def test_carries_the_fields_of_extra(self, log: Collected, logger: logging.Logger) -> None:
        logger.info("child %s died", "w-0", extra={"exit_code": 9})
        assert log.last["event"] == "child w-0 died"
        assert (log.last["exit_code"], log.last["logger"]) == (9, "gateway.sample")

    def test_shows_an_error_with_its_traceback_on_one_line(
        self, log: Collected, logger: logging.Logger
    ) -> None:
        def fail() -> None:
            raise ValueError("no sk-canary-12345678\nfor you")

        try:
            fail()
        except ValueError:
            logger.exception("broke")
        assert log.last["error"] == "ValueError: no [secret]\nfor you"
        assert "test_logs.py" in log.last["traceback"]
        assert b"canary" not in log.raw[-1]

    def test_thins_out_an_error_that_repeats_and_counts_what_it_kept_quiet(
        self, log: Collected
    ) -> None:
        handler = LinesHandler(log.lines)

        def fail(at_s: float) -> None:
            record = logging.makeLogRecord(
                {"name": "x", "msg": "lost", "levelno": logging.ERROR, "levelname": "ERROR"}
            )
            record.created = at_s
            handler.emit(record)

        for number in range(1_000):
            fail(100 + number / 1_000)
        assert len(log.raw) == 5
        fail(101.5)
        assert log.last["repeated"] == 995
        fail(200)
        assert "repeated" not in log.last

    def test_says_one_line_a_second_of_a_cause_whoever_says_it_and_how_often(
        self, log: Collected
    ) -> None:
        handler = LinesHandler(log.lines)
        events = ("channel not heard", "heartbeat not told", "backlog not counted")
        for number in range(2_500):
            record = logging.makeLogRecord(
                {"name": "x", "msg": events[number % 3], "levelname": "WARNING", "cause": "redis"}
            )
            record.created = 100 + number / 1_000
            handler.emit(record)
        assert [orjson.loads(line).get("left_out") for line in log.raw] == [None, 999, 999]

    def test_of_a_refused_call_is_one_a_second_while_something_is_away(
        self, log: Collected
    ) -> None:
        for _ in range(1_000):
            log.lines.outage("call refused", {"status": 503}, {"code": "x"}, cause="x")
        log.lines.outage("call refused", {"status": 503}, {"code": "y"}, cause="y")
        assert [orjson.loads(line)["code"] for line in log.raw] == ["x", "y"]

    def test_lets_every_call_through(self, log: Collected, logger: logging.Logger) -> None:
        for _ in range(100):
            logger.info("call ended")
        assert len(log.raw) == 100

    def test_goes_to_the_lines_alone_once_installed(self, log: Collected) -> None:
        root = logging.getLogger()
        before, level = list(root.handlers), root.level
        try:
            install(log.lines, level="info")
            logging.getLogger("gateway.other").debug("not shown")
            logging.getLogger("gateway.other").info("shown")
            logging.getLogger("aiohttp.server").info("a library, not shown")
            logging.getLogger("aiohttp.server").warning("a library")
            set_level("warning")
            logging.getLogger("gateway.other").info("not shown any more")
        finally:
            logging.captureWarnings(capture=False)
            root.handlers[:] = before
            root.setLevel(level)
            for package in ("gateway", "ledger", "providers"):
                logging.getLogger(package).setLevel(logging.NOTSET)
        assert [orjson.loads(line)["event"] for line in log.raw] == ["shown", "a library"]


class TestTheWriter:
    def test_writes_every_line_in_order_before_it_ends(self) -> None:
        reader, descriptor = os.pipe()
        with os.fdopen(reader, "rb") as read:
            with LineWriter(descriptor) as writer:
                for number in range(100):
                    writer.write(b"%d\n" % number)
            os.close(descriptor)
            assert read.read().split() == [b"%d" % number for number in range(100)]

    def test_drops_and_counts_what_nobody_reads_and_makes_nobody_wait(self) -> None:
        reader, descriptor = os.pipe()
        writer = LineWriter(descriptor)
        writer.waiting_max = 10
        for _ in range(50):
            writer.write(b"x" * 1_000_000)
        assert writer.dropped == 40
        os.close(reader)
        with writer:
            pass
        assert writer.dropped == 50
        os.close(descriptor)
