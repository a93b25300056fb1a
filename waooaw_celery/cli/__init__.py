"""The command line: `waooaw …`, and the same commands as `celery -A app waooaw …`."""

from __future__ import annotations

from waooaw_celery.cli.database import db
from waooaw_celery.cli.dead import dead
from waooaw_celery.cli.demo import demo
from waooaw_celery.cli.doctor import doctor
from waooaw_celery.cli.events import events
from waooaw_celery.cli.group import waooaw
from waooaw_celery.cli.ledger import conversation, erase, hold, log, purge, spool, stats
from waooaw_celery.cli.limits import limits
from waooaw_celery.cli.messages import broadcast, cancel, receipt, request, send
from waooaw_celery.cli.overview import agents, queues
from waooaw_celery.cli.recover import recover
from waooaw_celery.cli.up import up

__all__ = ["main", "waooaw"]

for command in (
    *(demo, up),
    *(agents, queues, send, broadcast, request, receipt, cancel, events, dead),
    *(log, conversation, stats, spool, db, recover, purge, hold, erase),
    *(limits, doctor),
):
    waooaw.add_command(command)


def main() -> None:
    """Run the command line as the program ``waooaw``."""
    waooaw(prog_name="waooaw")
