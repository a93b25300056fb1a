"""`console`: the web console."""

from __future__ import annotations

import importlib.util
import os
import webbrowser
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from waooaw_celery.cli.base.command import Command
from waooaw_celery.cli.group import named_app
from waooaw_celery.cli.output import echo
from waooaw_celery.errors import ConfigurationError

#: What the extra [console] brings.
_NEEDED = ("starlette", "uvicorn", "jinja2", "authlib", "httpx2", "itsdangerous", "multipart")
_ROLES = ("viewer", "operator", "officer")


@click.command(cls=Command, examples=["waooaw console", "waooaw console --port 8090 --allow-changes"])
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0: all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="0: a free port.")
@click.option(
    "--allow-changes", is_flag=True, help="Let operators and officers change things. Default: read-only."
)
@click.option("--open", "open_browser", is_flag=True, help="Open it in a browser.")
@click.option(
    "--users",
    type=click.Path(path_type=Path),
    envvar="WAOOAW_CONSOLE_USERS",
    show_envvar=True,
    help="File with names, roles and hashed passwords. See --add-user.",
)
@click.option(
    "--add-user", metavar="NAME", help="Ask for a password, print the line of a user for --users, and end."
)
@click.option("--role", "roles", type=click.Choice(_ROLES), multiple=True, help="Role of the added user.")
@click.option(
    "--trusted-proxy", metavar="NETWORK", multiple=True, help="Proxy that authenticates; may be repeated."
)
@click.option(
    "--user-header", default="X-Forwarded-User", show_default=True, help="The proxy's header with the name."
)
@click.option("--groups-header", help="The proxy's header with the groups, separated by commas.")
@click.option(
    "--oidc-issuer", metavar="URL", envvar="WAOOAW_CONSOLE_OIDC_ISSUER", help="Provider of OpenID Connect."
)
@click.option("--oidc-client-id", envvar="WAOOAW_CONSOLE_OIDC_CLIENT_ID", help="The console's id at the provider.")
@click.option("--oidc-name-claim", default="preferred_username", show_default=True, help="Claim with the name.")
@click.option("--oidc-groups-claim", default="groups", show_default=True, help="Claim with the groups.")
@click.option("--viewer", "viewers", metavar="NAME", multiple=True, help="Name or group of viewers; *: everybody.")
@click.option("--operator", "operators", metavar="NAME", multiple=True, help="Name or group of operators.")
@click.option("--officer", "officers", metavar="NAME", multiple=True, help="Name or group of officers.")
@click.option("--public-url", metavar="URL", envvar="WAOOAW_CONSOLE_URL", help="Its address as browsers see it.")
@click.option("--allow-host", "hosts", metavar="NAME", multiple=True, help="Another name of this console.")
@click.option("--tls-certificate", type=click.Path(exists=True, dir_okay=False), help="File of the certificate.")
@click.option("--tls-key", type=click.Path(exists=True, dir_okay=False), help="File of the certificate's key.")
@click.pass_context
def console(
    ctx: click.Context,
    /,
    host: str,
    port: int,
    allow_changes: bool,
    open_browser: bool,
    add_user: str | None,
    roles: tuple[str, ...],
    tls_certificate: str | None,
    tls_key: str | None,
    **access: Any,
) -> None:
    """Serve the web console, until SIGTERM or Ctrl-C. It needs the extra [console].

    It shows the agents live, messages, conversations, dead letters, workflows, limits and the ledger. On loopback
    it asks for no password. Elsewhere it starts only with --users, --trusted-proxy or --oidc-issuer. The secret of
    the OpenID client is in WAOOAW_CONSOLE_OIDC_SECRET, the key of sessions in WAOOAW_CONSOLE_SECRET.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"the console needs {', '.join(missing)}: run `pip install 'waooaw-celery[console]'`"
        )
    # Imported here, because they need the extra.
    from waooaw_celery.cli.base.web_server import listen, serve
    from waooaw_celery.console.access.configuration import authentication_of
    from waooaw_celery.console.application import ConsoleOptions, create_console

    if add_user is not None:
        _print_user(add_user, roles)
        return
    if (tls_certificate is None) != (tls_key is None):
        raise click.UsageError("give both --tls-certificate and --tls-key")
    options = _access(host, has_tls=tls_certificate is not None, **access)
    authentication = authentication_of(options)
    with closing(named_app(ctx)) as app:  # not checked with the servers: the console must start in an outage
        _ = app.settings, app.driver
        made = create_console(
            app,
            ConsoleOptions(
                authentication=authentication,
                hosts=options.hosts,
                allow_changes=allow_changes,
                is_secure=options.is_secure,
                **_secret(),
            ),
        )
        with closing(listen(host, port)) as listener:
            address = f"{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
            url = options.public_url or f"{'https' if tls_certificate else 'http'}://{address}/"

            def ready() -> None:
                echo(f"The console{'' if allow_changes else ', read-only'}: {url}")
                if open_browser:
                    webbrowser.open(url)

            tls = None if tls_certificate is None or tls_key is None else (tls_certificate, tls_key)
            serve(made.asgi, listener, stop=made.stream.stop, tls=tls, ready=ready)


def _access(
    host: str,
    *,
    has_tls: bool,
    users: Path | None,
    trusted_proxy: tuple[str, ...],
    user_header: str,
    groups_header: str | None,
    oidc_issuer: str | None,
    oidc_client_id: str | None,
    oidc_name_claim: str,
    oidc_groups_claim: str,
    viewers: tuple[str, ...],
    operators: tuple[str, ...],
    officers: tuple[str, ...],
    public_url: str | None,
    hosts: tuple[str, ...],
) -> Any:
    from waooaw_celery.console.access.configuration import AccessOptions, OpenIdProvider, TrustedProxies
    from waooaw_celery.console.access.roles import Role

    provider = proxies = None
    if oidc_issuer is not None:
        if oidc_client_id is None:
            raise click.UsageError("--oidc-issuer needs --oidc-client-id")
        provider = OpenIdProvider(
            issuer=oidc_issuer,
            client_id=oidc_client_id,
            client_secret=os.environ.get("WAOOAW_CONSOLE_OIDC_SECRET", ""),
            name_claim=oidc_name_claim,
            groups_claim=oidc_groups_claim,
        )
    if trusted_proxy:
        proxies = TrustedProxies(networks=trusted_proxy, user_header=user_header, groups_header=groups_header)
    return AccessOptions(
        host=host,
        public_url=public_url,
        allowed_hosts=hosts,
        has_tls=has_tls,
        users=users,
        proxies=proxies,
        provider=provider,
        grants={Role.VIEWER: viewers, Role.OPERATOR: operators, Role.OFFICER: officers},
    )


def _secret() -> dict[str, bytes]:
    """Return the key of sessions and tokens, if the environment has one."""
    text = os.environ.get("WAOOAW_CONSOLE_SECRET")
    if text is None:
        return {}
    if len(text) < 32:
        raise ConfigurationError("WAOOAW_CONSOLE_SECRET is too short: use at least 32 random characters")
    return {"secret": text.encode()}


def _print_user(name: str, roles: tuple[str, ...]) -> None:
    from waooaw_celery.console.access.passwords import user_line
    from waooaw_celery.console.access.roles import Role

    if not roles:
        raise click.UsageError("--add-user needs --role, which may be repeated: viewer, operator or officer")
    password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    echo(user_line(name, frozenset(map(Role, roles)), password))
