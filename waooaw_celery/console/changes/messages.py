"""Changes of messages: dead letters, cancelled messages, subscriptions."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from waooaw_celery.agents.bus import MessageBus
from waooaw_celery.agents.events.bus import EventBus
from waooaw_celery.broker.dead_letters.queue import Outcome
from waooaw_celery.console.access.roles import Role
from waooaw_celery.console.changes.action import Action, Given
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.wording import counted

#: Seconds for which a change of dead letters waits until another one has ended.
TURN_SECONDS = 20.0
_turn = threading.Lock()


@contextmanager
def _in_turn() -> Iterator[None]:
    """One change of dead letters after the other: two people may edit the same letter, and each would send it.

    Raises:
        InvalidMessage: another change takes too long.
    """
    if not _turn.acquire(timeout=TURN_SECONDS):
        raise InvalidMessage("another person changes dead letters at the moment: try again when that has ended")
    try:
        yield
    finally:
        _turn.release()


def _retry_dead_letters(given: Given) -> str:
    letters = given.app.dead_letters
    with _in_turn():
        return _described(letters.retry(_ids(given), by=given.by, again=given.flag("again")), "sent again")


def _discard_dead_letters(given: Given) -> str:
    with _in_turn():
        outcomes = given.app.dead_letters.discard(_ids(given), reason=given.reason, by=given.by)
    return _described(outcomes, "discarded")


def _edit_dead_letter(given: Given) -> str:
    payload = given.json("payload")
    letters = given.app.dead_letters
    with _in_turn():
        letter = letters.get(given.text("id"))
        [outcome] = letters.retry([letter], by=given.by, again=given.flag("again"), edit=lambda _: payload)
    if outcome.refused is not None:
        raise InvalidMessage(outcome.refused)
    return f"Sent again with the edited payload, as message {outcome.new_id}."


def _cancel_message(given: Given) -> str:
    receipt = MessageBus(given.app).cancel(
        given.text("id"), running=given.flag("running"), timeout=1.0, from_agent=given.by
    )
    return f"Message {receipt.message_id} is {receipt.status}."


def _unsubscribe(given: Given) -> str:
    found = EventBus(given.app).unsubscribe(given.text("subscriber"))
    return f"{found.subscriber} gets no more events after one second. It still handles what was sent before."


def _resubscribe(given: Given) -> str:
    subscriber = given.text("subscriber")
    EventBus(given.app).resubscribe(subscriber)
    return f"{subscriber} gets events again, within one second."


def _ids(given: Given) -> Sequence[str]:
    ids = given.fields.get("id", [])
    if not ids:
        raise InvalidMessage("no dead letter is selected: tick at least one")
    return ids


def _described(outcomes: Sequence[Outcome], done: str) -> str:
    """Return what was done, and each reason why something was not.

    Raises:
        InvalidMessage: nothing was done.
    """
    refused = [f"{each.id}: {each.refused}" for each in outcomes if each.refused is not None]
    number = len(outcomes) - len(refused)
    if not number:
        raise InvalidMessage("; ".join(refused))
    sentence = f"{counted(number, 'dead letter')} {'was' if number == 1 else 'were'} {done}."
    new = [each.new_id for each in outcomes if each.new_id is not None]
    if new:
        sentence += f" The new {'message' if len(new) == 1 else 'messages'}: {', '.join(new)}."
    return sentence + (f" Not {done}: {'; '.join(refused)}" if refused else "")


ACTIONS = (
    Action(name="retry-dead-letters", role=Role.OPERATOR, target=("id",), run=_retry_dead_letters),
    Action(name="discard-dead-letters", role=Role.OPERATOR, target=("id",), run=_discard_dead_letters),
    # Who edits a payload sees it.
    Action(name="edit-dead-letter", role=Role.OFFICER, target=("id",), run=_edit_dead_letter),
    Action(name="cancel-message", role=Role.OPERATOR, target=("id",), run=_cancel_message),
    Action(name="unsubscribe", role=Role.OPERATOR, target=("subscriber",), run=_unsubscribe),
    Action(name="resubscribe", role=Role.OPERATOR, target=("subscriber",), run=_resubscribe),
)
