"""OpenAI's dialect as an adapter: for OpenAI and for everybody in `providers.custom.QUIRKS`."""

from providers.adapter import Call, Failure, Meter, Target, UpstreamRequest
from providers.custom import QUIRKS
from providers.openai.body_meter import BodyMeter
from providers.openai.errors import failure
from providers.openai.requests import upstream_request
from providers.openai.stream_meter import StreamMeter


class OpenAI:
    """The `Adapter` of OpenAI's dialect. It keeps nothing."""

    def request(self, call: Call, target: Target) -> UpstreamRequest:
        """The vendor's request for this call."""
        return upstream_request(call, target)

    def meter(self, call: Call, target: Target, *, streamed: bool, bound: int) -> Meter:
        """A meter for the answer."""
        quirks = QUIRKS[target.quirks]
        return StreamMeter(call, quirks, bound) if streamed else BodyMeter(call, quirks, bound)

    def failure(self, status: int, body: bytes) -> Failure:
        """The error of an answer that is not 2xx."""
        return failure(status, body)
