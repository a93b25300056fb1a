"""Lists the tasks of a principal at an agent, from the ledger."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from datetime import UTC, datetime

from a2a.types import ListTasksRequest, ListTasksResponse
from a2a.utils.constants import DEFAULT_LIST_TASKS_PAGE_SIZE, MAX_LIST_TASKS_PAGE_SIZE
from a2a.utils.errors import InvalidParamsError

from waooaw_celery.edges.a2a.tasks import EndedTasks, a2a_state, a2a_task
from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.gateway.gateway import Gateway
from waooaw_celery.edges.gateway.task import TaskInfo
from waooaw_celery.ledger.read.records import Page
from waooaw_celery.ledger.trail import MAX_PAGE_SIZE, MessageAuditTrail
from waooaw_celery.messages.enums import MessageType
from waooaw_celery.messages.validation import check_id
from waooaw_celery.worker.execution.threads import run_in_thread

#: Pages of the ledger that one page of tasks may read: a status is known only of a task that was read.
_MAX_PAGES = 5


class TaskList:
    """Lists tasks, those that were called last first.

    ``total_size`` counts the tasks of the newest thousand messages, without the filter by status.

    Args:
        gateway: reads the tasks.
        ended: the tasks whose end a client knows already.
    """

    def __init__(self, gateway: Gateway, ended: EndedTasks) -> None:
        self._gateway, self._ended = gateway, ended

    async def read(self, principal: Principal, agent: str, params: ListTasksRequest) -> ListTasksResponse:
        """Return a page of tasks.

        Args:
            principal: who asks; only what was called in the name of its agent is listed.
            agent: the agent that was called.
            params: the filters, and which page.

        Raises:
            InvalidParamsError: the size or the token of the page is wrong.
            InvalidMessage: the context id is none.
        """
        size = params.page_size if params.HasField("page_size") else DEFAULT_LIST_TASKS_PAGE_SIZE
        if not 1 <= size <= MAX_LIST_TASKS_PAGE_SIZE:
            raise InvalidParamsError(f"pageSize must be 1 to {MAX_LIST_TASKS_PAGE_SIZE}, not {size}")
        after = _after(params.page_token) if params.page_token else None
        history = params.history_length if params.HasField("history_length") else None
        response = ListTasksResponse(page_size=size)
        for _ in range(_MAX_PAGES):
            page = await self._page(principal, agent, params, size - len(response.tasks), after)
            for record in page.records:
                task = self._ended.newest(await self._gateway.task(principal, record.receipt.message_id))
                if _is_wanted(task, params):
                    response.tasks.append(a2a_task(task, history, artifacts=params.include_artifacts))
            after = page.after
            if after is None or len(response.tasks) >= size:
                break
        if after is not None:
            response.next_page_token = _token(after)
        response.total_size = len((await self._page(principal, agent, params, MAX_PAGE_SIZE, None)).records)
        return response

    async def _page(
        self,
        principal: Principal,
        agent: str,
        params: ListTasksRequest,
        limit: int,
        after: tuple[datetime, str] | None,
    ) -> Page:
        query = MessageAuditTrail(self._gateway.app.ledger).query
        return await asyncio.wrap_future(
            run_in_thread(
                query,
                from_agent=principal.from_agent,
                to_agent=agent,
                message_type=MessageType.QUERY,
                conversation_id=check_id(params.context_id, "contextId") if params.context_id else None,
                limit=limit,
                after=after,
                payloads=False,
            )
        )


def _is_wanted(task: TaskInfo, params: ListTasksRequest) -> bool:
    if params.status and a2a_state(task.state) != params.status:
        return False
    since = params.status_timestamp_after
    return not params.HasField("status_timestamp_after") or task.updated_at >= since.ToDatetime(tzinfo=UTC)


def _token(after: tuple[datetime, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps([after[0].isoformat(), after[1]]).encode()).decode()


def _after(token: str) -> tuple[datetime, str]:
    try:
        at, id_ = json.loads(base64.urlsafe_b64decode(token))
        found = datetime.fromisoformat(at), check_id(id_, "pageToken")
        if found[0].tzinfo is None:
            raise ValueError("it has no time zone")
    except (ValueError, TypeError, binascii.Error) as error:
        raise InvalidParamsError("pageToken must be the nextPageToken of an earlier answer") from error
    return found
