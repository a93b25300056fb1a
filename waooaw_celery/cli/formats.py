"""`stats FILE`: what a payload becomes in each format, packed with each codec."""

from __future__ import annotations

from typing import IO

import click

from waooaw_celery.cli.output import console, print_json, show_table
from waooaw_celery.errors import DecodingFailed
from waooaw_celery.wire.caps import Caps
from waooaw_celery.wire.formats import decode
from waooaw_celery.wire.serializer import FormatStats, MessageSerializer


def show_formats(file: IO[bytes], as_json: bool) -> None:
    """Compare formats and codecs on a payload.

    Raises:
        InvalidMessage: it is larger, deeper or has more parts than a message may.
    """
    try:
        value = decode(file.read(), "application/json", None, Caps())
    except DecodingFailed as error:
        raise click.ClickException(f"{file.name} is no payload as JSON: {error}") from error
    found = sorted(MessageSerializer().stats(value), key=lambda one: one.size)
    if as_json:
        print_json(found)
        return
    columns = ("size, bytes", "of the JSON", "encode, µs", "decode, µs", "format", "packed with")
    show_table(console(), f"{file.name}: smallest first", columns, [_row(one) for one in found])
    plain, smallest = next(one for one in found if (one.format, one.codec) == ("json", "none")), found[0]
    best = f"{smallest.format} with {smallest.codec}"
    click.echo(f"As JSON it is {plain.size:,} bytes; as {best} it is {1 - smallest.ratio:.0%} less.")


def _row(one: FormatStats) -> tuple[object, ...]:
    return one.size, f"{one.ratio:.0%}", round(one.encode_us), round(one.decode_us), one.format, one.codec
