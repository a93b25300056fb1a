"""Changes of what the ledger keeps: legal holds and erasures."""

from __future__ import annotations

from dataclasses import asdict

from waooaw_celery.console.access.roles import Role
from waooaw_celery.console.changes.action import Action, Given
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.ledger.retention.holds import HoldKind
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.maintenance.erasure import erase


def _place_hold(given: Given) -> str:
    kind, value = HoldKind(given.text("kind")), given.text("value")
    Retention(given.app.database).hold(kind, value, given.reason)
    return f"Placed a hold on {kind} {value}."


def _release_hold(given: Given) -> str:
    kind, value = HoldKind(given.text("kind")), given.text("value")
    if not Retention(given.app.database).release(kind, value):
        raise InvalidMessage(f"there is no hold on {kind} {value}")
    return f"Released the hold on {kind} {value}."


def _erase(given: Given) -> str:
    agent, containing = given.optional("agent"), given.optional("containing")
    if given.text("confirm") != "erase":
        raise InvalidMessage("erased data cannot be restored: write the word erase to confirm")
    done = erase(given.app, agent=agent, containing=containing)
    counts = {name: count for name, count in asdict(done).items() if isinstance(count, int) and count}
    listed = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()) or "nothing matched"
    return f"Erased: {listed}. Not reached: {'; '.join(done.remains)}."


ACTIONS = (
    Action(name="place-hold", role=Role.OFFICER, target=("kind", "value"), run=_place_hold),
    Action(name="release-hold", role=Role.OFFICER, target=("kind", "value"), run=_release_hold),
    # The record has no text to search for: it may be what must be erased.
    Action(name="erase", role=Role.OFFICER, target=("agent",), run=_erase),
)
