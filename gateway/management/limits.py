"""How much an organization may have: what config.yaml says, or what the operator set for it."""

from typing import Annotated

import msgspec

Most = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class Limits(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """What the operator set for one organization; null: as config.yaml says."""

    projects_max: Most | None = None
    members_max: Most | None = None


def limits_in(text: str) -> Limits:
    """The limits of an organization's row. Those of a newer release are passed over."""
    said = msgspec.json.decode(text)
    known = {name: said[name] for name in Limits.__struct_fields__ if name in said}
    return msgspec.convert(known, Limits)
