"""Whether a worker can do its work now: its servers answer, it is registered, and it takes messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kombu.exceptions import OperationalError

from waooaw_celery.errors import WaooawError
from waooaw_celery.messages.queues import agent_queue, queue_depth
from waooaw_celery.worker.health import native_thread as native

#: Seconds between two looks at a server.
LOOK_SECONDS = 2.0
#: Seconds after which a server that has not answered counts as away.
ANSWER_SECONDS = 8.0


class ServerProbe:
    """Asks a server again and again, in a thread of its own, so that one that hangs delays no other.

    Args:
        name: what is asked, such as ``broker``.
        ask: asks it; an exception says that it does not answer.
    """

    def __init__(self, name: str, ask: Callable[[], object]) -> None:
        self.name = name
        self._ask = ask
        self._ended = False
        self._answered_at: float | None = None
        self._error = "it has not answered yet"
        native.start_thread(self._run)

    def problem(self) -> str | None:
        """Return why the server does not answer; None: it does."""
        if self._answered_at is not None and time.monotonic() - self._answered_at < ANSWER_SECONDS:
            return None
        return self._error

    def end(self) -> None:
        """Stop asking."""
        self._ended = True

    def _run(self) -> None:
        while not self._ended:
            began = time.monotonic()
            try:
                self._ask()
            except Exception as error:  # noqa: BLE001 - whatever it raises, the server is away; ``problem`` says why
                self._error = f"{type(error).__name__}: {error}"
            else:
                self._answered_at = began
                self._error = f"it has not answered for {ANSWER_SECONDS:g} s"
            native.sleep(LOOK_SECONDS)


class Readiness:
    """The probes of a worker.

    Args:
        worker: Celery's worker.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        app = worker.app
        self._broker = BrokerQuestion(app)
        self._probes = [ServerProbe("broker", self._broker.ask), ServerProbe("store", StoreQuestion(app).ask)]
        if app.settings.database_url is not None:
            self._probes.append(ServerProbe("ledger", lambda: ask_ledger(app)))

    def problems(self) -> dict[str, str]:
        """Return what keeps the worker from its work, by name; empty: it is ready."""
        found = {probe.name: problem for probe in self._probes if (problem := probe.problem()) is not None}
        heartbeat = self._worker.heartbeat
        if (silent := heartbeat.silent_seconds()) is None:
            found["registered"] = "no heartbeat has reached the store yet"
        elif silent > heartbeat.lifetime:
            found["registered"] = f"no heartbeat has reached the store for {silent:.0f} s"
        if self._worker.app.intake.not_taking is not None:
            found["intake"] = f"it takes no messages: {self._worker.app.intake.not_taking}"
        drained = sorted(heartbeat.agent_health.drained)
        if drained and set(drained) >= set(self._worker.app.consumed_agents()):
            found["draining"] = f"it takes no messages for {', '.join(drained)}"
        return found

    def broker_is_away(self) -> bool:
        """Return whether the broker does not answer."""
        return self._probes[0].problem() is not None

    def end(self) -> None:
        """Stop the probes."""
        for probe in self._probes:
            probe.end()


class BrokerQuestion:
    """Asks the broker for the depth of a queue, over a connection of its own.

    Args:
        app: the application, an AgentApp.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._connection: Any = None

    def ask(self) -> None:
        """Ask.

        Raises:
            OperationalError: the broker does not answer.
        """
        agents = self._app.consumed_agents() or tuple(self._app.agents)
        try:
            if self._connection is None:
                self._connection = self._app.connection_for_write(heartbeat=0)
            if agents:
                queue_depth(self._connection, agent_queue(agents[0]))
            else:
                self._connection.ensure_connection(max_retries=1, timeout=ANSWER_SECONDS)
        except Exception as error:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.collect()
            raise OperationalError(str(error) or type(error).__name__) from error


class StoreQuestion:
    """Asks the store whether it knows the agents, over a connection of its own.

    Args:
        app: the application, an AgentApp.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._registry: Any = None

    def ask(self) -> None:
        """Ask.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        try:
            if self._registry is None:
                self._registry = self._app.open_registry()
            self._registry.has(next(iter(self._app.agents), "nobody"))
        except WaooawError:
            registry, self._registry = self._registry, None
            if registry is not None:
                registry.close()
            raise


def ask_ledger(app: Any) -> None:
    """Ask the ledger's database for a row.

    Args:
        app: the application, an AgentApp.

    Raises:
        AuditUnavailable: it does not answer.
    """
    from sqlalchemy import text  # without a ledger, no process loads it

    with app.database.begin("check that the ledger answers") as connection:
        connection.execute(text("SELECT 1"))
