"""The IP ranges that calls may come from, as they are said over HTTP."""

from typing import Annotated

from msgspec import Meta

from gateway.addresses import range_in
from gateway.errors import BadRequest

IP_RANGES_MAX = 100

IpRange = Annotated[str, Meta(min_length=2, max_length=50, examples=["10.0.0.0/8"])]
IpRanges = Annotated[list[IpRange], Meta(min_length=1, max_length=IP_RANGES_MAX)]


def ranges_in(wanted: list[str] | None) -> list[str] | None:
    """The ranges as they are kept, each once; `BadRequest` for one that is none."""
    if wanted is None:
        return None
    try:
        return list(dict.fromkeys(range_in(one) for one in wanted))
    except ValueError as error:
        raise BadRequest(f"{error}.", code="invalid_ip_range", param="ip_ranges") from error
