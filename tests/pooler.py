"""A real PgBouncer in front of a PostgreSQL server."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg2  # type: ignore[import-untyped]
import pytest
from sqlalchemy.engine import make_url
from support import until

from waooaw_celery.testing.embedded import free_port, running


def pgbouncer() -> str:
    """Return the path of PgBouncer's program; skip the test if there is none."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip("PgBouncer is not installed: on Debian and Ubuntu, apt-get install pgbouncer")
    return found


def _user_for(host: str) -> pwd.struct_passwd:
    """Return a user that is not root, which PgBouncer refuses, and that may use the server's socket."""
    owner = os.stat(host).st_uid if host.startswith("/") and os.path.exists(host) else 0
    return pwd.getpwuid(owner) if owner else pwd.getpwnam("nobody")


@contextmanager
def pooled(database_url: str, *settings: str) -> Iterator[str]:
    """Run PgBouncer, which gives a connection to each transaction, and yield the URL that leads through it.

    Args:
        database_url: the URL of the database.
        settings: more lines of its configuration, such as ``default_pool_size = 2``.
    """
    program, url, port = pgbouncer(), make_url(database_url), free_port()
    server = {
        "host": url.query.get("host") or url.host or "/tmp",  # noqa: S108 - PostgreSQL's default
        "port": url.port or 5432,
        "dbname": url.database,
        "user": url.username,
        "password": url.password,
    }
    target = " ".join(f"{name}={value}" for name, value in server.items() if value)
    with tempfile.TemporaryDirectory(prefix="waooaw-pgbouncer-") as folder:
        configuration = Path(folder, "pgbouncer.ini")
        lines = [
            "[databases]",
            f"{url.database} = {target}",
            "[pgbouncer]",
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =",
            "auth_type = any\npool_mode = transaction",
            *settings,
        ]
        configuration.write_text("\n".join(lines) + "\n")
        command = [program, str(configuration)]
        if os.getuid() == 0:
            user = _user_for(str(server["host"]))
            for path in (Path(folder), configuration):
                os.chown(path, user.pw_uid, user.pw_gid)
            command[1:1] = ["--user", user.pw_name]
        through = url.set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)
        log = Path(folder, "log")

        def answers() -> bool:
            with suppress(psycopg2.OperationalError):
                psycopg2.connect(through.replace("+psycopg2", ""), connect_timeout=2).close()
                return True
            assert process.poll() is None, log.read_text()
            return False

        with running(command, log=log) as process:
            until(answers, "PgBouncer")
            yield through
