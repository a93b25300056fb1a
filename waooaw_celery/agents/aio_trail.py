"""The ledger's questions as coroutines: apart from the other operations, so that these load no SQLAlchemy."""

from __future__ import annotations

from waooaw_celery.agents.waiting import in_thread
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.trail import MessageAuditTrail as Trail


class MessageAuditTrail:
    """The ledger and its questions: ``waooaw_celery.MessageAuditTrail``, awaited.

    Args:
        ledger: the ledger, such as ``app.ledger``.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.operations = Trail(ledger)

    query = in_thread(Trail.query)
    conversation = in_thread(Trail.conversation)
    consequences = in_thread(Trail.consequences)
    flows = in_thread(Trail.flows)
    history = in_thread(Trail.history)
    refusals = in_thread(Trail.refusals)
    statistics = in_thread(Trail.statistics)
    receipt = in_thread(Trail.receipt)
    payload = in_thread(Trail.payload)
    log_message = in_thread(Trail.log_message)
    update_status = in_thread(Trail.update_status)
