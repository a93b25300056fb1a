"""Run by test_wheel in a project that `waooaw init` wrote, with the installed package alone: a worker answers."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from waooaw_celery import Message, MessageAuditTrail, MessageBus, RequestResponseHandler, create_app
from waooaw_celery.testing.embedded import running, valkey

#: Seconds for the start of the worker, and for each answer.
DEADLINE = 60.0


def main() -> None:
    """Start a server and the worker of my_agents.greeter; ask it, send to it, and read what was recorded."""
    programs = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder, valkey() as url:
        database = f"sqlite:///{folder}/ledger.sqlite"
        env = os.environ | {"CELERY_BROKER_URL": url, "WAOOAW_DATABASE_URL": database}
        with running(
            [str(programs / "waooaw"), "db", "upgrade"], log=Path(folder) / "upgrade.log", env=env
        ) as upgrade:
            assert upgrade.wait(DEADLINE) == 0
        app = create_app(
            broker_url=url, waooaw_database_url=database, waooaw_sender="smoke", waooaw_agents=["greeter"]
        )
        command = [str(programs / "celery"), "-A", "my_agents.greeter", "worker", "-n", "greeter@%h", "-c", "1"]
        with running(command, log=Path(folder) / "worker.log", env=env):
            answer = RequestResponseHandler(app).request("greeter", "greet", {"name": "Ada"}, timeout=DEADLINE)
            bus = MessageBus(app)
            sent = bus.send(Message(from_agent="smoke", to_agent="greeter", payload={"task": 8}))
            end = time.monotonic() + DEADLINE
            while (status := bus.receipt(sent.message_id).status.value) != "handled" and time.monotonic() < end:
                time.sleep(0.05)
        records = MessageAuditTrail(app.ledger).conversation(sent.message_id)
        app.close()
    print(json.dumps({"answer": answer, "status": status, "messages": len(records)}))


if __name__ == "__main__":
    main()
