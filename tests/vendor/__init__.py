"""The scripted vendor: an OpenAI on a socket that does what a test says, and logs what it saw."""

from tests.vendor.remote import Vendor
from tests.vendor.script import Entry, Script, State

__all__ = ["Entry", "Script", "State", "Vendor"]
