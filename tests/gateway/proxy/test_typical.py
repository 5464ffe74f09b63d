"""What is typical is learned fast, forgotten slowly, and takes bounded room."""

import random

import pytest

from gateway.proxy.typical import BOUNDS, LEARNED_AFTER, WEIGHT_MAX, Typical

FIRST = 777


def learned(typical: Typical, *outputs: int, organization: str = "o") -> int | None:
    """What is typical once these were seen."""
    for output in outputs:
        typical.note(organization, "m", {"input": 10_000, "output": output})
    return typical.output(organization, "m", otherwise=FIRST)


def test_a_setting_is_typical_until_enough_is_known() -> None:
    typical = Typical()

    assert learned(typical, *[50] * (LEARNED_AFTER - 1)) == FIRST
    assert learned(typical, 50) == 64
    assert learned(typical, organization="another") == FIRST


@pytest.mark.parametrize("seed", range(20))
def test_nine_of_ten_are_not_longer_and_the_bound_is_at_most_half_above_what_they_need(
    seed: int,
) -> None:
    dice = random.Random(seed)  # noqa: S311 - repeatable
    outputs = [int(dice.lognormvariate(6, 1)) for _ in range(100)]
    typical = learned(Typical(), *outputs)
    assert typical is not None

    assert sum(output > typical for output in outputs) <= 10
    needed = sorted(outputs)[89]
    assert needed <= typical <= max(16, 1.5 * needed)


def test_what_changed_is_followed_within_two_hundred_streams() -> None:
    typical = Typical()
    learned(typical, *[100] * 10_000)

    assert learned(typical, *[10_000] * 20) == BOUNDS[19]
    assert learned(typical, *[100] * (2 * WEIGHT_MAX)) == 128


def test_an_answer_of_any_length_is_counted() -> None:
    assert learned(Typical(), *[0] * LEARNED_AFTER) == BOUNDS[0]
    assert learned(Typical(), *[10**9] * LEARNED_AFTER) == BOUNDS[-1]


def test_audio_and_text_are_output_alike() -> None:
    typical = Typical()
    for _ in range(LEARNED_AFTER):
        typical.note("o", "m", {"output": 30, "output_audio": 30})

    assert typical.output("o", "m", otherwise=FIRST) == 64


def test_a_model_that_reasoned_once_has_nothing_typical_for_anybody() -> None:
    typical = Typical()
    typical.note("o", "m", {"output": 30}, reasoning=1)

    assert typical.output("another", "m", otherwise=FIRST) is None
    assert typical.output("o", "n", otherwise=FIRST) == FIRST


def test_of_too_many_the_latest_are_remembered() -> None:
    typical = Typical(entries_max=2)
    for organization in ("a", "b", "a", "c"):
        learned(typical, *[50] * LEARNED_AFTER, organization=organization)

    known = [typical.output(each, "m", otherwise=FIRST) for each in ("a", "b", "c")]
    assert known == [64, FIRST, 64]
