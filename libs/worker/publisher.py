"""Tells gateways what their sequences said, one message per gateway and step.

On the engine's thread: another one would take the interpreter from it while it prepares
the next step. While that step is computed, the message is on its way.
"""

from itertools import chain

import structlog

from mesh.connect import LOST
from mesh.post import Post
from protocol import keys
from protocol.messages import TokenEvents
from protocol.wire import encode
from worker.exchange import Exchange, Outcome

RETRY_SECONDS = 0.2

logger = structlog.get_logger()


class Publisher:
    """Brings back to the exchange which ended sequences were told, and who is gone."""

    def __init__(self, post: Post, exchange: Exchange, pool: str = "") -> None:
        self._post = post
        self._exchange = exchange
        self._pool = pool
        self._said = Outcome()  # of the last message

    def publish(self, outcome: Outcome) -> None:
        """Send a round's words, once those of the round before have arrived.

        While Redis is away this waits: tokens must not be computed past what can be told.
        """
        self._settle()
        self._said = outcome
        for event in chain.from_iterable(outcome.events.values()):
            if event.index == 0:
                logger.debug("tokens.posting", request_id=event.request_id)
        self._post.send(
            {
                keys.replies(gateway): {
                    "body": encode(TokenEvents(events=tuple(said), pool=self._pool))
                }
                for gateway, said in outcome.events.items()
            }
        )
        if not outcome.num_running:  # there is nothing to compute meanwhile
            self._settle()

    def _settle(self) -> None:
        """Wait until the last message has arrived."""
        lost = self._lost()
        gone = {each for each in self._said.events if keys.replies(each) in lost}
        if gone or self._said.finished:
            self._exchange.bring(told=self._said.finished, gone=gone)
        self._said = Outcome()

    def _lost(self) -> set[str]:
        """The mailboxes whose reader is gone."""
        is_last = False
        while True:
            try:
                return self._post.arrived()
            except LOST as error:
                if is_last:
                    raise
                logger.warning("publish.delayed", error=type(error).__name__)
            is_last = self._exchange.is_stopping
            self._exchange.rest(RETRY_SECONDS)
            self._post.repeat()
