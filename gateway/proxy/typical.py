"""What streams usually generate, learned per organization and model from those that ended well.

Kept in this process only, and forgotten slowly, so that it follows what an organization does.
"""

from bisect import bisect_left

from ledger.usage import OUTPUT_TOKENS

ENTRIES_MAX = 10_000  # organizations times models; about 500 bytes each
LEARNED_AFTER = 10  # streams; until then a setting is what is typical
WEIGHT_MAX = 128  # then every count is halved: the latest hundred or so are what counts
BOUNDS = tuple(round(16 * 2 ** (step / 2)) for step in range(34))  # 16 ... 1,482,910 tokens


class _Outputs:
    """How long the answers were: a count for each bound."""

    __slots__ = ("_counts", "_total", "high")

    def __init__(self) -> None:
        self._counts = [0] * len(BOUNDS)
        self._total = 0
        self.high = 0  # nine of ten are not longer; 0: too few are known

    def add(self, tokens: int) -> None:
        counts = self._counts
        counts[min(bisect_left(BOUNDS, tokens), len(BOUNDS) - 1)] += 1
        self._total += 1
        if self._total >= WEIGHT_MAX:
            counts[:] = [count // 2 for count in counts]
            self._total = sum(counts)
        if self._total >= LEARNED_AFTER:
            self.high = self._ninth_of_ten()

    def _ninth_of_ten(self) -> int:
        place, above = len(BOUNDS) - 1, self._counts[-1]
        while above * 10 <= self._total and place > 0:
            place -= 1
            above += self._counts[place]
        return BOUNDS[place]


class Typical:
    """The outputs of this process's streams, for at most `ENTRIES_MAX` pairs, the latest ones."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._outputs: dict[tuple[str, str], _Outputs] = {}
        # Models that reported tokens nobody saw, whatever their name says.
        self._reasoning: dict[str, None] = {}

    def output(self, organization: str, model: str, *, otherwise: int) -> int | None:
        """Tokens that nine of ten streams do not exceed; None: none can be told, they grow unseen.

        `otherwise` stands for the answers of those of whom too few are known.
        """
        if model in self._reasoning:
            return None
        outputs = self._outputs.get((organization, model))
        return outputs.high or otherwise if outputs is not None else otherwise

    def note(
        self, organization: str, model: str, usage: dict[str, int], *, reasoning: int = 0
    ) -> None:
        """A stream has ended well with this usage, `reasoning` of its output being reasoning."""
        if reasoning:
            self._reasoning.pop(model, None)
            self._reasoning[model] = None
            self._keep_within(self._reasoning)
            return
        pair = (organization, model)
        outputs = self._outputs.pop(pair, None) or _Outputs()
        self._outputs[pair] = outputs
        self._keep_within(self._outputs)
        outputs.add(sum([count for unit, count in usage.items() if unit in OUTPUT_TOKENS]))

    def _keep_within(self, known: dict[tuple[str, str], _Outputs] | dict[str, None]) -> None:
        """Forget what was not seen for the longest time."""
        if len(known) > self._entries_max:
            del known[next(iter(known))]  # type: ignore[arg-type]  # a key of its own
