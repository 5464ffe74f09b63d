"""The configuration's own words: folders, routes, and what is embedded."""

from pathlib import Path

from gateway.settings import Config, Journal, Ledger, Postgres, Redis
from providers.adapter import Secret


def test_folders_stand_below_the_data_folder_unless_told() -> None:
    config = Config(data_dir=Path("/srv"))
    assert config.run_dir == Path("/srv/run")
    assert config.journal_dir == Path("/srv/journal")
    elsewhere = Config(ledger=Ledger(journal=Journal(directory=Path("/fast"))))
    assert elsewhere.journal_dir == Path("/fast")


def test_a_server_is_embedded_if_one_of_the_two_has_no_url() -> None:
    redis, postgres = Redis(url=Secret("redis://x")), Postgres(url=Secret("postgresql://x"))
    assert Config().is_embedded
    assert Config(redis=redis).is_embedded
    assert not Config(redis=redis, postgres=postgres).is_embedded


def test_without_models_no_name_has_a_route() -> None:
    assert Config().route("gpt-5") is None
