"""`exporter`: serve the metrics of the whole fleet for Prometheus."""

from __future__ import annotations

import signal
import threading
from contextlib import closing
from typing import Any

import click

from waooaw_celery.cli.base.command import Command
from waooaw_celery.cli.group import named_app
from waooaw_celery.cli.output import echo
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.maintenance.fleet.exporter import Exporter
from waooaw_celery.monitoring.http_server import MonitoringServer


@click.command(cls=Command, examples=["waooaw exporter --port 9808"])
@click.option("--port", type=click.IntRange(0, 65535), default=9808, show_default=True, help="0: a free port.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0: all.")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=15.0,
    show_default=True,
    help="Seconds between two readings of the broker, the store and the ledger.",
)
@click.pass_context
def exporter(ctx: click.Context, port: int, host: str, interval: float) -> None:
    """Serve /metrics, /health/live and /health/ready of the whole fleet, until SIGTERM or Ctrl-C.

    One exporter is enough for a fleet. It needs the extra [prometheus]. It starts also while the broker or the
    ledger is down: waooaw_exporter_source_up says which source cannot be read.
    """
    app = named_app(ctx)  # not checked with the servers: an exporter must start in an outage
    with closing(app):
        _ = app.settings, app.driver
        fleet = Exporter(app, interval)
        try:
            server = MonitoringServer(fleet.routes(), port, host)
        except ConfigurationError as error:
            reason = f"port {port} of {host} cannot be used: {error.__cause__}. Give another --port or --host"
            raise ConfigurationError(reason) from error
        ended = threading.Event()

        def end(*_: Any) -> None:
            ended.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        fleet.start()
        server.start()
        echo(f"Metrics of the fleet: http://{host}:{server.port}/metrics")
        while not ended.wait(3600):
            pass
        server.stop()
        fleet.stop()
