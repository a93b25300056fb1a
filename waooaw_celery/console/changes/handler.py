"""Answers the forms of the console: checks who asks, records the change in the ledger, and carries it out."""

from __future__ import annotations

from urllib.parse import urlsplit

from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from waooaw_celery.app.app import AgentApp
from waooaw_celery.console.access.protection import has_token, own_path
from waooaw_celery.console.access.roles import Person
from waooaw_celery.console.changes import agents, messages, retention, workflows
from waooaw_celery.console.changes.action import Action, Given
from waooaw_celery.console.rendering import Pages
from waooaw_celery.errors import AuditUnavailable, BrokerUnavailable, InvalidMessage, StoreUnavailable, WaooawError
from waooaw_celery.ledger.operators.actions import MAX_TARGET, ActionOutcome, begin_action, end_action
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: All actions by their names.
ACTIONS = {
    each.name: each for each in (*agents.ACTIONS, *messages.ACTIONS, *workflows.ACTIONS, *retention.ACTIONS)
}
#: Most fields of a form: more dead letters than these are not retried at once.
MAX_FIELDS = 1100
#: What the page says of each outcome.
_SENTENCES = {
    ActionOutcome.DONE: "The change was made",
    ActionOutcome.FAILED: "The change was not made",
    ActionOutcome.INTERRUPTED: "The change may have been made, or a part of it",
}
#: Most bytes of a form, which may have an edited payload.
MAX_BYTES = 16 * 1024 * 1024


class ChangeHandler:
    """Answers ``POST /changes/{action}``.

    Args:
        app: the application.
        pages: draws the pages.
        allow_changes: whether anything may be changed.
    """

    def __init__(self, app: AgentApp, pages: Pages, *, allow_changes: bool) -> None:
        self._app, self._pages = app, pages
        self._allow_changes = allow_changes

    async def answer(self, request: Request) -> Response:
        """Carry out a change, and send the browser back to the page of the form."""
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > MAX_BYTES:
            return self._pages.error(request, 413, f"The form is larger than {MAX_BYTES >> 20} MiB.")
        form = await request.form(max_files=0, max_fields=MAX_FIELDS, max_part_size=MAX_BYTES)
        fields: dict[str, list[str]] = {}
        for name, value in form.multi_items():
            fields.setdefault(name, []).append(str(value))
        return await run_in_threadpool(self._answer, request, fields, has_token(request.state, form))

    def _answer(self, request: Request, fields: dict[str, list[str]], has_valid_token: bool) -> Response:
        person: Person = request.state.person
        action = ACTIONS.get(request.path_params["action"])
        refusal = self._refusal(action, person, has_valid_token)
        if action is None or refusal is not None:
            return self._pages.error(request, 403, refusal or "There is no such change.")
        address = request.client.host if request.client is not None else ""
        try:
            action_id = self._carry_out(action, person, address, fields)
        except InvalidMessage as error:
            return self._pages.error(request, 400, str(error))
        return RedirectResponse(_back_to(fields.get("back", ["/"])[0], action_id), 303)

    def _refusal(self, action: Action | None, person: Person, has_valid_token: bool) -> str | None:
        if action is None:
            return "There is no such change."
        if not self._allow_changes:
            return "This console is read-only: it was started without --allow-changes."
        if not has_valid_token:
            return "The form is too old: load its page again, and repeat the change."
        if not person.may(action.role):
            return f"You need the role {action.role} for this."
        return None

    def _carry_out(self, action: Action, person: Person, address: str, fields: dict[str, list[str]]) -> str:
        """Carry out an action, and return the id of its record.

        Raises:
            InvalidMessage: the reason is empty; nothing was changed.
            AuditUnavailable: the change cannot be recorded, and was not made; or only its outcome cannot.
        """
        given = Given(app=self._app, by=person.name, reason=(fields.get("reason") or [""])[0], fields=fields)
        target = " ".join(", ".join(filter(None, fields.get(field, []))) for field in action.target).strip()
        action_id = begin_action(
            self._app.database,
            person=person.name,
            address=address,
            action=action.name,
            target=target if len(target) <= MAX_TARGET else target[: MAX_TARGET - 1] + "…",
            reason=given.reason,
        )
        try:
            outcome, details = ActionOutcome.DONE, action.run(given)
        except (StoreUnavailable, BrokerUnavailable, RedisError, OSError) as error:
            outcome, details = ActionOutcome.INTERRUPTED, str(error) or type(error).__name__
        except (WaooawError, ValueError) as error:
            outcome, details = ActionOutcome.FAILED, str(error) or type(error).__name__
        except BaseException as error:
            details = f"{type(error).__name__}: {error}"
            end_action(self._app.database, action_id, ActionOutcome.INTERRUPTED, details)
            raise
        logger.info(
            "%a changed something in the console: %s of %a, %s",
            person.name,
            action.name,
            target,
            outcome,
            extra={"action": "console_change", "change_id": action_id},
        )
        try:
            end_action(self._app.database, action_id, outcome, details)
        except AuditUnavailable as error:  # who does not know that it was made makes it again
            raise AuditUnavailable(
                f"{_SENTENCES[outcome]}: {details} Only its record stays begun, because {error}"
            ) from error
        return action_id


def _back_to(path: str, action_id: str) -> str:
    """Return a path of this console with the id of a change, whatever the form says."""
    query = "&".join(each for each in urlsplit(path).query.split("&") if each and not each.startswith("change="))
    return f"{own_path(path)}?{query}&change={action_id}" if query else f"{own_path(path)}?change={action_id}"
