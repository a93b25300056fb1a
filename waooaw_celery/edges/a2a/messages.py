"""What a message of A2A asks for: which skill, and with which arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from a2a.types import Message
from a2a.utils.errors import ContentTypeNotSupportedError, InvalidParamsError

from waooaw_celery.edges.a2a.values import data_of, plain_of
from waooaw_celery.edges.gateway.catalogue import Operation
from waooaw_celery.messages.validation import JSON

#: The keys of a message's metadata that name the skill.
SKILL_KEYS = ("skill_id", "skillId")
#: Parameters that take the text of a message, if an operation has more than one for text.
_TEXT_NAMES = ("text", "message", "prompt", "question")


def choose_operation(message: Message, operations: Sequence[Operation]) -> Operation:
    """Return what a message asks for: the skill that its metadata names, or else the only one.

    Args:
        message: the message.
        operations: what its sender may call.

    Raises:
        InvalidParamsError: there is no such skill, or several and the message names none.
    """
    metadata = plain_of(message.metadata)
    named = next((metadata[key] for key in SKILL_KEYS if key in metadata), None)
    known = ", ".join(each.method for each in operations) or "none that you may call"
    if named is None:
        if len(operations) == 1:
            return operations[0]
        raise InvalidParamsError(
            f'name a skill in the metadata of the message, such as {{"skill_id": "…"}}; the skills are {known}'
        )
    for each in operations:
        if each.method == named:
            return each
    raise InvalidParamsError(f"there is no skill {named!r:.80}; the skills are {known}")


def arguments_of(message: Message, operation: Operation) -> dict[str, JSON]:
    """Return the arguments that a message gives to an operation.

    A data part is an object with arguments. The text parts together are the value of the operation's only
    parameter for text, or of the one that is called text, message, prompt or question.

    Args:
        message: the message.
        operation: what it asks for.

    Raises:
        InvalidParamsError: a data part is no object, or two parts give one argument, or no parameter takes the
            text.
        ContentTypeNotSupportedError: a part is a file.
        InvalidMessage: a number is too large for the protocol.
    """
    texts, arguments = split_parts(message)
    if not texts:
        return arguments
    parameter = text_parameter(operation.parameters, arguments)
    if parameter is None:
        names = ", ".join(operation.parameters.get("properties", {})) or "none"
        raise InvalidParamsError(
            f"{operation.method} has no parameter for the text of the message: send its arguments as a data part, "
            f"an object; the parameters are {names}"
        )
    return {**arguments, parameter: "\n".join(texts)}


def input_of(message: Message) -> JSON:
    """Return what a message gives to a workflow that waits for input: its data, or else its text.

    Raises:
        InvalidParamsError: it has both, or several data parts.
        ContentTypeNotSupportedError: a part is a file.
    """
    texts = [part.text for part in message.parts if part.WhichOneof("content") == "text"]
    data = [data_of(part) for part in message.parts if part.WhichOneof("content") == "data"]
    _refuse_files(message)
    if len(data) > 1 or (data and texts):
        raise InvalidParamsError("the task waits for one value: send one data part, or text parts only")
    return data[0] if data else "\n".join(texts)


def split_parts(message: Message) -> tuple[list[str], dict[str, JSON]]:
    """Return the texts of a message, and the arguments in its data parts.

    Raises:
        InvalidParamsError, ContentTypeNotSupportedError, InvalidMessage: as ``arguments_of``.
    """
    _refuse_files(message)
    texts: list[str] = []
    arguments: dict[str, JSON] = {}
    for part in message.parts:
        if part.WhichOneof("content") == "text":
            texts.append(part.text)
            continue
        data = data_of(part)
        if not isinstance(data, dict):
            raise InvalidParamsError(
                'a data part must be an object with the arguments of the skill, such as {"city": "Turin"}, not '
                f"{data!r:.80}"
            )
        if twice := arguments.keys() & data.keys():
            raise InvalidParamsError(f"two data parts give the argument {min(twice)!r:.80}: send it once")
        arguments |= data
    return texts, arguments


def text_parameter(parameters: Mapping[str, Any], given: Mapping[str, JSON] = {}) -> str | None:
    """Return the parameter that takes the text of a message, or None.

    Args:
        parameters: JSON Schema of the parameters.
        given: arguments that the message gives otherwise.
    """
    properties = parameters.get("properties", {})
    free = [
        name
        for name, schema in properties.items()
        if name not in given and schema.get("type", "string") == "string"
    ]
    texts = [name for name in free if "type" in properties[name]] or free
    return texts[0] if len(texts) == 1 else next((name for name in _TEXT_NAMES if name in free), None)


def _refuse_files(message: Message) -> None:
    for part in message.parts:
        kind = part.WhichOneof("content")
        if kind in ("raw", "url"):
            raise ContentTypeNotSupportedError(
                "this agent takes no files: send text parts and data parts, and put the address of a file into an "
                "argument"
            )
        if kind is None:
            raise InvalidParamsError("a part of the message is empty: give it text or data")
