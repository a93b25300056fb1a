"""OpenID Connect: the organisation's login, by the authorization code flow with PKCE (OpenID Connect Core 1.0)."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from authlib.integrations.base_client import OAuthError
from authlib.integrations.starlette_client import OAuth
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from waooaw_celery.console.access.authentication import Authentication, granted
from waooaw_celery.console.access.protection import own_path
from waooaw_celery.console.access.roles import Person, Role
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Seconds after which a person logs in again.
SESSION_SECONDS = 8 * 3600
#: Seconds that the provider may take for an answer.
PROVIDER_SECONDS = 10.0
#: Longest query that is kept until after the login, in characters.
_MAX_QUERY = 1000


class OidcAuthentication(Authentication):
    """A login at an OpenID provider. The session is a signed cookie with the name and the groups.

    Args:
        issuer: URL of the provider, such as ``https://login.example.com/realms/main``.
        client_id: the id under which the console is registered there.
        client_secret: its secret.
        grants: who has which role, by name or group.
        name_claim: the claim with the name, such as ``email``.
        groups_claim: the claim with the groups.
        public_url: the address of the console as browsers see it.
    """

    logout_path = "/logout"

    def __init__(
        self,
        *,
        issuer: str,
        client_id: str,
        client_secret: str,
        grants: Mapping[Role, Collection[str]],
        name_claim: str = "preferred_username",
        groups_claim: str = "groups",
        public_url: str,
    ) -> None:
        self._grants = grants
        self._name_claim, self._groups_claim = name_claim, groups_claim
        self._redirect_uri = public_url.rstrip("/") + "/login/callback"
        self._client: Any = OAuth().register(
            "provider",
            server_metadata_url=issuer.rstrip("/") + "/.well-known/openid-configuration",
            client_id=client_id,
            client_secret=client_secret,
            client_kwargs={
                "scope": "openid profile email",
                "code_challenge_method": "S256",
                "timeout": PROVIDER_SECONDS,
            },
        )
        self.routes: Sequence[BaseRoute] = (
            Route("/login", self._login),
            Route("/login/callback", self._callback),
            Route("/logout", self._logout, methods=["POST"]),
        )

    def identify(self, connection: HTTPConnection) -> Person | Response:
        """Return the person of the session, or send the browser to the login."""
        person = connection.session.get("person")
        if person is None or person["until"] < time.time():
            connection.session.clear()
            if connection.scope.get("method") != "GET" or connection.url.path.startswith("/live/"):
                return PlainTextResponse("Your session is over: load the page again.", 401)
            query = connection.url.query
            # The search that somebody sent as an address. A longer one does not fit into the cookie.
            kept = f"?{query}" if query and len(query) <= _MAX_QUERY else ""
            connection.session["next"] = connection.url.path + kept
            return RedirectResponse("/login", 303)
        # The grants are looked up each time: a role that was taken away ends with a restart, not with the session.
        return granted(person["name"], person["groups"], self._grants)

    async def _login(self, request: Request) -> Response:
        try:
            response: Response = await self._client.authorize_redirect(request, self._redirect_uri)
        except Exception as error:  # noqa: BLE001 - whatever a provider answers, the person must know
            logger.warning("the OpenID provider does not answer: %r", error)
            return PlainTextResponse("The OpenID provider does not answer. Try again later.", 503)
        return response

    async def _callback(self, request: Request) -> Response:
        try:
            token = await self._client.authorize_access_token(request)
        except OAuthError as error:
            logger.warning("a login was refused: %r", error)
            return PlainTextResponse("The login was refused. Open the console again.", 403)
        except Exception as error:  # noqa: BLE001 - whatever a provider answers, the person must know
            logger.warning("the OpenID provider sent no valid token: %r", error)
            return PlainTextResponse("The OpenID provider sent no valid token.", 403)
        claims = token.get("userinfo") or {}
        name, groups = claims.get(self._name_claim), claims.get(self._groups_claim) or []
        if not isinstance(name, str) or not name.strip():
            return PlainTextResponse(f"The provider's token has no claim {self._name_claim!r}.", 403)
        after = str(request.session.get("next") or "/")
        request.session.clear()
        # Only groups that have a role: browsers drop a cookie of more than 4 KiB, and ask to log in for ever.
        known = [each for granted_to in self._grants.values() for each in granted_to]
        listed = [each for each in groups if each in known] if isinstance(groups, list) else []
        request.session["person"] = {"name": name, "groups": listed, "until": time.time() + SESSION_SECONDS}
        query = urlsplit(after).query
        return RedirectResponse(own_path(after) + (f"?{query}" if query else ""), 303)

    async def _logout(self, request: Request) -> Response:
        request.session.clear()
        return PlainTextResponse(
            "You are logged out of the console. Close the browser to log out of the provider."
        )
