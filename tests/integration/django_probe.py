"""An agent for tests whose handlers use Django's ORM.

PROBE_NAME is its name. PROBE_SETTINGS are its settings, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import django
from asgiref.sync import sync_to_async
from django.db import connection, models, transaction

from waooaw_celery import Agent, Message, MessageType, create_app

app = create_app("probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)
django.setup()


class Note(models.Model):
    text = models.TextField()

    class Meta:
        app_label = "notes"


def _backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


@agent.on(MessageType.COMMAND)
async def command(message: Message) -> None:
    await Note.objects.acreate(text=str(message.payload))


@agent.method
def plain() -> int:
    return int(Note.objects.count())


@agent.method
def note_on_commit(fail: bool) -> None:
    """Send two messages in a transaction, which is committed or rolled back."""
    with suppress(ZeroDivisionError), transaction.atomic():
        command.delay_on_commit("on commit")
        command.apply_async_on_commit(("on commit",))
        if fail:
            raise ZeroDivisionError


@agent.method
async def awaited() -> int:
    return int(await Note.objects.acount())


@agent.method
async def parts(seconds: float = 0.0) -> AsyncIterator[str]:
    """Yield one row at a time, from a server-side cursor."""
    async for note in Note.objects.order_by("id").aiterator(chunk_size=1):
        yield note.text
        await asyncio.sleep(seconds)


@agent.method
async def backends() -> list[int]:
    """Return the server process of this handler's connection, twice."""
    return [await sync_to_async(_backend)(), await sync_to_async(_backend)()]


@agent.method
async def failing() -> None:
    await Note.objects.acount()
    raise ValueError("no such note")


@agent.method(time_limit=2)
async def slow() -> Any:
    """Run a query that continues after its handler was cancelled."""

    def sleep() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(5)")

    await sync_to_async(sleep)()
