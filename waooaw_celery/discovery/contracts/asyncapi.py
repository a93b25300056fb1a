"""All agents, their methods, messages and topics as an AsyncAPI 3 document."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from waooaw_celery.discovery.agent_info import AgentInfo
from waooaw_celery.discovery.contracts.contract import DESCRIPTION, PARAMETERS, PART, RESULT
from waooaw_celery.discovery.contracts.documents import newest_contracts
from waooaw_celery.messages.enums import TYPE_NAMES
from waooaw_celery.messages.queues import EVENT_HANDLERS, agent_queue
from waooaw_celery.messages.topics.schemas import TopicSchema

#: The version of AsyncAPI.
VERSION = "3.0.0"
#: What the key of a component or a channel may not have.
_NO_KEY = re.compile(r"[^A-Za-z0-9_.\-]")
_JSON = "application/json"


def asyncapi_document(
    agents: Iterable[AgentInfo], schemas: Iterable[TopicSchema] = (), title: str = "Agents", version: str = "1"
) -> dict[str, Any]:
    """Return an AsyncAPI 3 document.

    Each agent is a channel, its queue, with one operation for each of its handlers. The payload of a request is
    the object of its keyword arguments. Each topic that has a schema or a subscription is a channel too.

    Args:
        agents: the agents.
        schemas: the schemas of topics, the newest version of each topic last.
        title: title of the document.
        version: version of the document.
    """
    made = _Document()
    for info in agents:
        made.add_agent(info)
    for schema in schemas:
        made.add_schema(schema)
    return {
        "asyncapi": VERSION,
        "info": {"title": title, "version": version},
        "defaultContentType": _JSON,
        "channels": made.channels,
        "operations": made.operations,
        "components": {"schemas": made.schemas, "messages": made.messages},
    }


class _Document:
    """The parts of a document."""

    def __init__(self) -> None:
        self.channels: dict[str, Any] = {}
        self.operations: dict[str, Any] = {}
        self.schemas: dict[str, Any] = {}
        self.messages: dict[str, Any] = {}

    def add_agent(self, info: AgentInfo) -> None:
        """Add an agent: its queue, its answers, and its subscriptions."""
        channel = f"agent.{info.name}"
        self.channels[channel] = {
            "address": agent_queue(info.name).name,
            "title": info.name,
            "description": _described(info),
            "messages": {},
        }
        contracts = newest_contracts(info)
        for handler in sorted({*(info.handlers or ()), *contracts}):
            if handler.startswith(EVENT_HANDLERS):
                continue
            if handler in TYPE_NAMES:
                message = self._message(f"{info.name}.{handler}", f"A {handler.upper()} to {info.name}", {})
                self._operation(info.name, handler, channel, message)
            else:
                self._add_method(info.name, handler, channel, contracts.get(handler, {}))
        for pattern in sorted({each for w in info.workers if w.profile for each in w.profile.subscribes}):
            topic = self._topic(pattern)
            self.operations[_key(f"{info.name}.subscribes.{pattern}")] = {
                "action": "receive",
                "channel": _reference("channels", topic),
                "summary": f"{info.name} subscribes to {pattern}",
            }

    def add_schema(self, schema: TopicSchema) -> None:
        """Add a topic with the schema of its payload; a newer version replaces an older one."""
        channel = self._topic(schema.topic)
        key = self._message(f"event.{schema.topic}", f"An event on {schema.topic}", schema.schema)
        self.messages[key]["summary"] = f"Version {schema.version}"
        self.channels[channel]["messages"] = {key: _reference("components/messages", key)}

    def _add_method(self, agent: str, method: str, channel: str, contract: Mapping[str, Any]) -> None:
        name = f"{agent}.{method}"
        request = self._message(name, f"A request of {name}", contract.get(PARAMETERS, {}))
        self._operation(agent, method, channel, request, contract.get(DESCRIPTION))
        answers = {"answer": self._message(f"{name}.answer", f"The answer of {name}", contract.get(RESULT, {}))}
        if PART in contract:
            answers["part"] = self._message(f"{name}.part", f"A part of the answer of {name}", contract[PART])
        replies = _key(f"answers.{name}")
        # Answers come over the result backend, where each caller waits for its own.
        self.channels[replies] = {
            "address": None,
            "messages": {key: _reference("components/messages", key) for key in answers.values()},
        }
        self.operations[_key(name)]["reply"] = {
            "channel": _reference("channels", replies),
            "messages": [_reference(f"channels/{_escaped(replies)}/messages", key) for key in answers.values()],
        }

    def _operation(
        self, agent: str, handler: str, channel: str, message: str, description: str | None = None
    ) -> None:
        self.channels[channel]["messages"][message] = _reference("components/messages", message)
        operation: dict[str, Any] = {
            "action": "receive",
            "channel": _reference("channels", channel),
            "title": f"{agent}.{handler}",
            "messages": [_reference(f"channels/{_escaped(channel)}/messages", message)],
        }
        if description:
            operation["description"] = description
        self.operations[_key(f"{agent}.{handler}")] = operation

    def _message(self, name: str, title: str, payload: Any) -> str:
        key = _key(name)
        self.messages[key] = {
            "name": name,
            "title": title,
            "contentType": _JSON,
            "payload": self._schema(key, payload),
        }
        return key

    def _schema(self, key: str, schema: Any) -> Any:
        """Return a schema whose definitions are components of the document."""
        definitions = schema.get("$defs", {}) if isinstance(schema, Mapping) else {}
        names = {f"#/$defs/{name}": _key(f"{key}.{name}") for name in definitions}
        for name, definition in definitions.items():
            self.schemas[names[f"#/$defs/{name}"]] = _moved(definition, names)
        if isinstance(schema, Mapping):
            schema = {name: value for name, value in schema.items() if name not in ("$defs", "$schema", "$id")}
        self.schemas[key] = _moved(schema, names)
        return _reference("components/schemas", key)

    def _topic(self, topic: str) -> str:
        key = _key(f"topic.{topic.replace('#', 'any').replace('*', 'one')}")
        self.channels.setdefault(key, {"address": topic, "title": f"Events on {topic}", "messages": {}})
        return key


def _described(info: AgentInfo) -> str:
    told = [f"The queue of the agent {info.name}."]
    if info.versions:
        told.append(f"Version: {', '.join(info.versions)}.")
    if info.capabilities:
        told.append(f"Capabilities: {', '.join(map(str, info.capabilities))}.")
    if info.tags:
        told.append(f"Tags: {', '.join(info.tags)}.")
    return " ".join(told)


def _moved(schema: Any, names: Mapping[str, str]) -> Any:
    if isinstance(schema, list):
        return [_moved(each, names) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {name: _moved(value, names) for name, value in schema.items()}
    target = names.get(str(schema.get("$ref")))
    return found if target is None else {**found, "$ref": f"#/components/schemas/{target}"}


def _key(name: str) -> str:
    return _NO_KEY.sub("_", name)


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _reference(where: str, key: str) -> dict[str, str]:
    return {"$ref": f"#/{where}/{_escaped(key)}"}
