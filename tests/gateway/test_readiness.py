"""A process is ready when every required check is good, and silence is not good."""

from gateway.readiness import Readiness, Ready


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_check_fails_until_its_loop_has_said_that_it_is_good() -> None:
    readiness = Readiness(Clock())
    readiness.expect("redis")
    assert readiness.state() == Ready(ready=False, checks={"redis": "starting"})
    readiness.good("redis")
    assert readiness.state() == Ready(ready=True, checks={"redis": "ok"})


def test_a_failed_check_says_why_until_it_is_good_again() -> None:
    readiness = Readiness(Clock())
    readiness.expect("redis")
    readiness.bad("redis", "connection refused")
    assert readiness.state() == Ready(ready=False, checks={"redis": "connection refused"})
    readiness.good("redis")
    assert readiness.state().ready


def test_a_loop_that_falls_silent_has_failed() -> None:
    clock = Clock()
    readiness = Readiness(clock)
    readiness.expect("flusher", within_s=5)
    readiness.good("flusher")
    clock.now_s += 5
    assert readiness.state().ready
    clock.now_s += 1
    assert readiness.state() == Ready(ready=False, checks={"flusher": "not heard of for 6 s"})
    readiness.good("flusher")
    assert readiness.state().ready


def test_what_is_not_required_is_shown_and_decides_nothing() -> None:
    readiness = Readiness(Clock())
    readiness.expect("postgres", is_required=False)
    readiness.bad("postgres", "away; ends wait in Redis")
    assert readiness.state() == Ready(ready=True, checks={"postgres": "away; ends wait in Redis"})
