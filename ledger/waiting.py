"""Those who wait for one partition's answer: how many may, how long, and what they hear then."""

from collections import deque

from ledger.step import Asked, Phase

QUEUE_MAX = 8_192  # holds waiting in one partition; more would only wait to be refused
RECOVERY_WAIT_S = 2.0  # a recovery is over by then, or a client is better off asking again


class Waiting:
    """The holds and extensions of a partition that nobody has answered."""

    def __init__(self) -> None:
        self.phase = Phase.UNKNOWN
        self._holds: deque[Asked] = deque()
        self._extensions: deque[Asked] = deque()

    def ask(self, asked: Asked) -> None:
        """Queue a hold."""
        if len(self._holds) >= QUEUE_MAX:
            asked.fail("too many calls wait for the ledger")
        else:
            self._holds.append(asked)

    def ask_more(self, asked: Asked) -> None:
        """Queue an extension."""
        if len(self._extensions) >= QUEUE_MAX:
            asked.fail("too many calls wait for the ledger")
        else:
            self._extensions.append(asked)

    def wait_s(self, now_s: float) -> float:
        """How long the oldest queued hold has waited."""
        return now_s - self._holds[0].born_s if self._holds else 0.0

    def overdue(self, now_s: float, *, is_answering: bool) -> list[Asked]:
        """Take out those who have waited long enough, answered, and those who left."""
        found: list[Asked] = []
        for queue in (self._holds, self._extensions):
            gone = [a for a in queue if self.has_expired(a, now_s, is_answering=is_answering)]
            if gone:
                kept = [asked for asked in queue if not asked.future.done()]
                queue.clear()
                queue.extend(kept)
                found += gone
        return found

    def postpone(self, by_s: float) -> None:
        """Give everyone who waits more time."""
        for queue in (self._holds, self._extensions):
            for asked in queue:
                asked.deadline_s += by_s

    def has_expired(self, asked: Asked, now_s: float, *, is_answering: bool) -> bool:
        """Whether nobody waits for this any more; fails it when its time is up."""
        deadline_s, reason = asked.deadline_s, "Redis does not answer"
        if is_answering and self.phase is not Phase.ACTIVE:
            deadline_s = max(deadline_s, asked.born_s + RECOVERY_WAIT_S)
            reason = "the partition is recovering"
        if now_s >= deadline_s:
            asked.fail(reason)
        return asked.future.done()

    def abandon(self, reason: str) -> None:
        """Fail everyone who waits in a queue."""
        for queue in (self._holds, self._extensions):
            for asked in queue:
                asked.fail(reason)
            queue.clear()
