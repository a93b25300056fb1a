"""`serve`: an edge, by which agents of other worlds reach ours."""

from __future__ import annotations

import importlib.util
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from waooaw_celery.cli.base.command import Command
from waooaw_celery.cli.group import named_app
from waooaw_celery.cli.output import echo
from waooaw_celery.edges.protection.networks import network_of
from waooaw_celery.errors import ConfigurationError, UnknownAgent
from waooaw_celery.messages.validation import check_agent_name

if TYPE_CHECKING:
    from waooaw_celery.app.app import AgentApp
    from waooaw_celery.edges.access.authentication import Authentication

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@click.command(
    cls=Command,
    examples=[
        "waooaw serve --add-key portal",
        "waooaw serve --a2a --mcp --http --principals principals.toml --host 0.0.0.0 --port 8443",
    ],
)
@click.option("--a2a", is_flag=True, help="Speak A2A. Needs the extra [a2a].")
@click.option("--mcp", is_flag=True, help="Speak MCP by streamable HTTP. Needs the extra [mcp].")
@click.option("--http", is_flag=True, help="Speak HTTP and CloudEvents. Needs the extra [http].")
@click.option(
    "--stdio", is_flag=True, help="Speak MCP by standard input and output, for one client that starts it."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0: all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: a free port.")
@click.option("--agent", "agents", metavar="NAME", multiple=True, help="Serve only this agent; may be repeated.")
@click.option(
    "--principals",
    type=click.Path(path_type=Path),
    envvar="WAOOAW_EDGE_PRINCIPALS",
    show_envvar=True,
    help="File with who may do what. See --add-key.",
)
@click.option(
    "--add-key",
    metavar="NAME",
    help="Print a new API key, and on standard output the entry of its principal; then end.",
)
@click.option("--trusted-proxy", metavar="NETWORK", multiple=True, help="Proxy that authenticates clients.")
@click.option("--user-header", default="X-Forwarded-User", show_default=True, help="The proxy's header.")
@click.option("--oidc-issuer", metavar="URL", multiple=True, help="Issuer of bearer tokens; may be repeated.")
@click.option("--oidc-audience", metavar="TEXT", help="Audience that bearer tokens must have.")
@click.option("--public-url", metavar="URL", envvar="WAOOAW_EDGE_URL", help="Its address as clients see it.")
@click.option("--allow-host", "hosts", metavar="NAME", multiple=True, help="Another name of this edge.")
@click.option("--allow-network", "networks", metavar="NETWORK", multiple=True, help="Inner network to reach.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.001, 86400 * 30),
    default=300.0,
    show_default=True,
    help="Seconds that a task may take.",
)
@click.option("--cancel-when-gone", is_flag=True, help="Cancel a task when its client goes away.")
@click.option("--tls-certificate", type=click.Path(exists=True, dir_okay=False), help="File of the certificate.")
@click.option("--tls-key", type=click.Path(exists=True, dir_okay=False), help="File of the certificate's key.")
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    a2a: bool,
    mcp: bool,
    http: bool,
    stdio: bool,
    host: str,
    port: int,
    agents: tuple[str, ...],
    principals: Path | None,
    add_key: str | None,
    trusted_proxy: tuple[str, ...],
    user_header: str,
    oidc_issuer: tuple[str, ...],
    oidc_audience: str | None,
    public_url: str | None,
    hosts: tuple[str, ...],
    networks: tuple[str, ...],
    timeout: float,
    cancel_when_gone: bool,
    tls_certificate: str | None,
    tls_key: str | None,
) -> None:
    """Serve an edge, until SIGTERM or Ctrl-C: agents of other worlds reach ours by A2A, MCP or HTTP.

    On loopback it asks for no credentials. Elsewhere it starts only with --principals.
    """
    if add_key is not None:
        _print_entry(add_key)
        return
    chosen = [name for name, wanted in (("a2a", a2a), ("mcp", mcp), ("http", http)) if wanted]
    if stdio == bool(chosen):
        raise click.UsageError("choose what to speak: --a2a, --mcp and --http together, or --stdio alone")
    _check_installed("mcp" if stdio else chosen[0])
    if stdio:
        _serve_stdio(ctx, agents, timeout)
        return
    with closing(named_app(ctx)) as app:
        _ = app.settings, app.driver
        from waooaw_celery.cli.base.web_server import listen
        from waooaw_celery.cli.base.web_server import serve as run
        from waooaw_celery.edges.application import EdgeOptions, Protocol, create_edge
        from waooaw_celery.edges.protection.connections import BoundedProtocol

        if (tls_certificate is None) != (tls_key is None):
            raise click.UsageError("give both --tls-certificate and --tls-key")
        tls = None if tls_certificate is None or tls_key is None else (tls_certificate, tls_key)
        if principals is None and (not _is_loopback(host) or public_url is not None):
            raise ConfigurationError(
                f"the edge would be open to everybody who reaches {public_url or host}: give --principals, or "
                "listen on 127.0.0.1"
            )
        with closing(listen(host, port)) as listener:
            address = f"{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
            url = (public_url or f"{'https' if tls else 'http'}://{address}").rstrip("/")
            options = EdgeOptions(
                protocols=[Protocol(each) for each in chosen],
                authentication=_authentication(
                    principals, trusted_proxy, user_header, oidc_issuer, oidc_audience, networks
                ),
                agents=agents,
                public_url=url,
                hosts=_names(host, url, hosts),
                timeout=timeout,
                cancel_when_gone=cancel_when_gone,
                allowed_networks=[network_of(each) for each in networks],
            )
            edge = create_edge(app, options)
            _tell_unknown(app, agents)
            if not _is_loopback(host) and not url.startswith("https:"):
                echo(
                    "Clients send their keys unencrypted: give --tls-certificate and --tls-key, or put a proxy "
                    "with TLS before the edge and give its https address as --public-url.",
                    err=True,
                )
            run(
                edge.asgi,
                listener,
                stop=edge.stop,
                tls=tls,
                ready=lambda: echo(f"The edge speaks {', '.join(chosen)}: {url}/"),
                max_connections=2 * options.bounds.max_requests,
                protocol=BoundedProtocol,
            )


def _serve_stdio(ctx: click.Context, agents: tuple[str, ...], timeout: float) -> None:
    from waooaw_celery.edges.mcp.stdio import serve_stdio, stdout_kept

    with stdout_kept():  # the modules of the application may print
        app = named_app(ctx)
        _ = app.settings, app.driver
    with closing(app):
        _tell_unknown(app, agents)
        serve_stdio(app, agents=agents, timeout=timeout)


def _tell_unknown(app: AgentApp, agents: tuple[str, ...]) -> None:
    """Tell which chosen agents no worker has served yet: a name may be wrong, or its worker starts later."""
    from waooaw_celery.edges.gateway.catalogue import Catalogue

    catalogue = Catalogue(app)
    for name in dict.fromkeys(agents):
        try:
            catalogue.agent(name)
        except UnknownAgent as error:
            echo(f"The edge cannot serve {name} yet: {error}", err=True)


def _check_installed(protocol: str) -> None:
    needed = ("starlette", "uvicorn", "httpx2", *(["mcp"] if protocol == "mcp" else []))
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"an edge needs {', '.join(missing)}: run `pip install 'waooaw-celery[{protocol}]'`"
        )


def _authentication(
    principals: Path | None,
    proxies: tuple[str, ...],
    user_header: str,
    issuers: tuple[str, ...],
    audience: str | None,
    networks: tuple[str, ...],
) -> Authentication | None:
    """Return how clients are authenticated; None: they are not."""
    from waooaw_celery.edges.access.authentication import ApiKeys, FirstOf, TrustedProxy
    from waooaw_celery.edges.access.principals_file import read_principals

    if principals is None:
        if proxies or issuers:
            raise click.UsageError(
                "--trusted-proxy and --oidc-issuer need --principals, which says who may do what"
            )
        return None
    known = read_principals(principals)
    ways: list[Authentication] = [ApiKeys(known)]
    if proxies:
        ways.append(TrustedProxy(known, [network_of(each) for each in proxies], user_header))
    if issuers:
        from waooaw_celery.edges.access.bearer_tokens import BearerTokens

        if audience is None:
            raise click.UsageError(
                "--oidc-issuer needs --oidc-audience: a token for another service must not count"
            )
        ways.append(BearerTokens(known, issuers, audience, [network_of(each) for each in networks]))
    return FirstOf(ways)


def _names(host: str, url: str, others: tuple[str, ...]) -> set[str]:
    own = (*_LOOPBACK, host) if _is_loopback(host) else (host,)
    return {*own, urlsplit(url).hostname or host, *others}


def _is_loopback(host: str) -> bool:
    """Whether only this computer reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _print_entry(name: str) -> None:
    from waooaw_celery.edges.access.principals_file import new_key

    check_agent_name(name, "the name")
    key, hashed = new_key()
    echo(f"The key of {name}, which is shown only now: {key}", err=True)  # so that >> puts it into no file
    echo("Its entry for the file of --principals:", err=True)
    for line in (f"[{name}]", f'from_agent = "{name}"', f'keys = ["{hashed}"]', 'may_call = ["agent.method"]'):
        echo(line)
