"""`stats FILE`: the size of a payload in each format, and compressed with each codec."""

from __future__ import annotations

from typing import IO

import click

from waooaw_celery.cli.output import echo, print_json
from waooaw_celery.cli.output.table import show_table
from waooaw_celery.errors import DecodingFailed
from waooaw_celery.wire.caps import Caps
from waooaw_celery.wire.formats import decode
from waooaw_celery.wire.serializer import FormatStats, MessageSerializer


def show_formats(file: IO[bytes], as_json: bool) -> None:
    """Print how large a payload is in each format with each codec, and how long each takes.

    Args:
        file: the payload as JSON.
        as_json: print JSON instead of a table.

    Raises:
        ClickException: the file is not JSON.
        InvalidMessage: the payload exceeds the limits of size, depth or number of values.
    """
    try:
        value = decode(file.read(), "application/json", None, Caps())
    except DecodingFailed as error:
        raise click.ClickException(f"{file.name} is not a JSON payload: {error}") from error
    found = sorted(MessageSerializer().stats(value), key=lambda one: one.size)
    if as_json:
        print_json(found)
        return
    columns = ("size, bytes", "of the JSON", "encode, µs", "decode, µs", "format", "codec")
    show_table(f"{file.name}: smallest first", columns, [_row(one) for one in found])
    plain, smallest = next(one for one in found if (one.format, one.codec) == ("json", "none")), found[0]
    best = smallest.format if smallest.codec == "none" else f"{smallest.format} with {smallest.codec}"
    echo(f"JSON takes {plain.size:,} bytes; {best} takes {1 - smallest.ratio:.0%} less.")


def _row(one: FormatStats) -> tuple[object, ...]:
    return one.size, f"{one.ratio:.0%}", round(one.encode_us), round(one.decode_us), one.format, one.codec
