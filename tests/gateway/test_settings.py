"""The configuration's own words: folders, routes, and what is embedded."""

import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

from gateway import plans, settings
from gateway.bounds import DERIVED
from gateway.payments import settings as payments
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


# Read from the file into what the code then reads.
READ_ELSEWHERE = {"nanos_per_million"}  # ledger/price_compiler.py, by another type


def test_every_setting_is_read_by_somebody() -> None:
    folder = Path(settings.__file__).parent
    text = "".join(path.read_text() for path in folder.rglob("*.py"))
    named = {
        field.name
        for module in (settings, plans, payments)
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if is_dataclass(kind) and kind.__module__ == module.__name__
        for field in fields(kind)
        if field.metadata != DERIVED
    }
    unread = {name for name in named - READ_ELSEWHERE if not re.search(rf"\.{name}\b", text)}
    assert unread == set(), "a setting that changes nothing misleads whoever sets it"
