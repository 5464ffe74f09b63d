"""The buckets of a usage never overlap, and every token is in one."""

from ledger.usage import INPUT_TOKENS, NOTHING, OUTPUT_TOKENS, Source, Unit, Usage


def test_every_bucket_of_tokens_is_input_or_output_and_none_is_both() -> None:
    assert not INPUT_TOKENS & OUTPUT_TOKENS
    per_item = {
        Unit.REQUESTS,
        Unit.WEB_SEARCHES,
        Unit.FILE_SEARCHES,
        Unit.CODE_SESSIONS,
        Unit.IMAGES,
        Unit.CHARACTERS,
        Unit.MILLISECONDS,
    }
    assert set(Unit) == INPUT_TOKENS | OUTPUT_TOKENS | per_item


def test_cached_and_written_tokens_count_as_input() -> None:
    usage = Usage({Unit.INPUT: 1, Unit.CACHE_READ: 20, Unit.CACHE_WRITE_1H: 300, Unit.OUTPUT: 7})
    assert (usage.input_tokens(), usage.output_tokens(), usage.tokens()) == (321, 7, 328)


def test_reasoning_is_part_of_the_output_and_not_added_to_it() -> None:
    assert Usage({Unit.OUTPUT: 7}, reasoning=5).output_tokens() == 7


def test_what_is_no_token_is_in_neither_sum() -> None:
    usage = Usage({Unit.WEB_SEARCHES: 3, Unit.MILLISECONDS: 9_000, "unknown": 4})
    assert (usage.input_tokens(), usage.output_tokens(), usage.tokens()) == (0, 0, 0)


def test_nothing_is_nothing() -> None:
    assert NOTHING.source is Source.NONE
    assert (NOTHING.input_tokens(), NOTHING.output_tokens()) == (0, 0)
