"""The command line: `waooaw`, with the same commands as `celery -A app waooaw`."""

from __future__ import annotations

from waooaw_celery.cli.group import LazyCommand, waooaw

__all__ = ["main", "waooaw"]

#: Each command: the module that defines it, and its line in ``waooaw --help``.
waooaw.lazy_commands.update(
    {
        "agent": LazyCommand(
            "waooaw_celery.cli.agents.commands", "Show one agent: status, health, capabilities, workers."
        ),
        "agents": LazyCommand(
            "waooaw_celery.cli.agents.overview", "List the known agents and what waits for each."
        ),
        "breakers": LazyCommand(
            "waooaw_celery.cli.agents.breakers", "List, open and close the circuit breakers of agents."
        ),
        "broadcast": LazyCommand("waooaw_celery.cli.messages", "Send one message to each of several agents."),
        "cancel": LazyCommand("waooaw_celery.cli.messages", "Cancel a message or request."),
        "completion": LazyCommand(
            "waooaw_celery.cli.base.completion", "Print the completion script for bash, zsh or fish."
        ),
        "console": LazyCommand("waooaw_celery.console.command", "Serve the web console."),
        "contracts": LazyCommand(
            "waooaw_celery.cli.agents.contracts", "Print or compare the contracts of methods; AsyncAPI."
        ),
        "conversation": LazyCommand(
            "waooaw_celery.cli.ledger.conversation", "Show a conversation: as a tree, a table, or a picture."
        ),
        "db": LazyCommand("waooaw_celery.cli.database", "Create or upgrade the ledger's tables."),
        "dead": LazyCommand("waooaw_celery.cli.dead_letters", "List, show, retry and discard dead letters."),
        "demo": LazyCommand("waooaw_celery.demo.command", "Run the demo: agents measure a folder of documents."),
        "doctor": LazyCommand("waooaw_celery.cli.doctor", "Check servers, settings, permissions and workers."),
        "drain": LazyCommand("waooaw_celery.cli.agents.commands", "Let an agent end what it has, and stop."),
        "erase": LazyCommand("waooaw_celery.cli.ledger.commands", "Erase payloads, results and error texts."),
        "events": LazyCommand("waooaw_celery.cli.events", "Publish and replay events, manage subscriptions."),
        "export": LazyCommand(
            "waooaw_celery.cli.ledger.export", "Write messages to a file for an auditor; check such a file."
        ),
        "exporter": LazyCommand(
            "waooaw_celery.cli.monitoring.exporter", "Serve the metrics of the whole fleet for Prometheus."
        ),
        "find": LazyCommand("waooaw_celery.cli.agents.commands", "List the agents with a capability."),
        "flower": LazyCommand("waooaw_celery.cli.monitoring.flower", "Run Flower with a password, read-only."),
        "health": LazyCommand("waooaw_celery.cli.monitoring.health", "Check whether a process is ready or live."),
        "hold": LazyCommand("waooaw_celery.cli.ledger.commands", "Place, release and list legal holds."),
        "init": LazyCommand("waooaw_celery.cli.project.init", "Write a new project: an agent and its test."),
        "limits": LazyCommand("waooaw_celery.cli.limits", "Show and set rate limits, pause and resume senders."),
        "log": LazyCommand("waooaw_celery.cli.ledger.commands", "List the messages in the ledger, newest first."),
        "maintenance": LazyCommand("waooaw_celery.cli.agents.commands", "Give an agent no message by capability."),
        "monitoring": LazyCommand(
            "waooaw_celery.cli.monitoring.files", "Print alert rules for Prometheus and dashboards for Grafana."
        ),
        "purge": LazyCommand("waooaw_celery.cli.ledger.commands", "Remove messages whose retention is over."),
        "queues": LazyCommand(
            "waooaw_celery.cli.queues", "List the queues and what waits in each; drop messages."
        ),
        "receipt": LazyCommand("waooaw_celery.cli.messages", "Show the receipt of a message."),
        "recover": LazyCommand("waooaw_celery.cli.recover", "Publish messages again that the broker lost."),
        "request": LazyCommand("waooaw_celery.cli.messages", "Call a method of an agent and print its result."),
        "resume": LazyCommand("waooaw_celery.cli.agents.commands", "End the draining or maintenance of an agent."),
        "scale": LazyCommand(
            "waooaw_celery.cli.workers.scale", "Show and set how many messages an agent handles at once."
        ),
        "send": LazyCommand("waooaw_celery.cli.messages", "Send a message to an agent."),
        "serve": LazyCommand(
            "waooaw_celery.edges.command", "Serve agents to others by A2A, MCP, HTTP and CloudEvents."
        ),
        "spool": LazyCommand(
            "waooaw_celery.cli.ledger.commands", "Show what waits on this computer for the database."
        ),
        "stats": LazyCommand(
            "waooaw_celery.cli.ledger.commands", "Show the ledger's statistics, or compare wire formats."
        ),
        "top": LazyCommand("waooaw_celery.cli.monitoring.top", "Show all agents live, the urgent ones first."),
        "traffic": LazyCommand("waooaw_celery.cli.agents.commands", "Set the weights of agents, to move traffic."),
        "workflow": LazyCommand(
            "waooaw_celery.cli.workflows", "Start, list, show, signal, cancel and pause workflows."
        ),
        "up": LazyCommand("waooaw_celery.demo.up", "Run the demo's agents until Ctrl-C."),
    }
)


def main() -> None:
    """Run the command line as the program ``waooaw``."""
    waooaw(prog_name="waooaw")
