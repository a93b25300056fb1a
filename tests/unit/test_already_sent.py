"""Whether a message may be published that was recorded before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from waooaw_celery import Message
from waooaw_celery.app.publishing.already_sent import check_not_sent_before
from waooaw_celery.errors import StoreUnavailable, UnknownMessage
from waooaw_celery.messages.queues import HandlerName


def test_a_message_whose_record_waits_in_the_spool_is_sent_later() -> None:
    """The ledger did not answer when it was recorded, and does not know it yet: this passes."""

    def get(message_id: str) -> Any:
        raise UnknownMessage(message_id)

    message = Message(from_agent="boss", to_agent="worker-1")
    with pytest.raises(StoreUnavailable, match="waits in the spool"):
        check_not_sent_before(SimpleNamespace(get=get), [(HandlerName("worker-1", "command"), message)], set())  # type: ignore[arg-type]
