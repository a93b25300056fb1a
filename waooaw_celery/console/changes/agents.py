"""Changes of agents: their status, weight, circuit breaker, rate limits and pauses."""

from __future__ import annotations

from waooaw_celery.console.access.roles import Role
from waooaw_celery.console.changes.action import Action, Given
from waooaw_celery.discovery.agent_info import AgentStatus
from waooaw_celery.discovery.registry import Registry
from waooaw_celery.errors import InvalidMessage


def _set_status(given: Given) -> str:
    status = AgentStatus(given.text("status"))
    info = Registry(given.app).set_status(given.text("agent"), status, by=given.by, reason=given.reason)
    return f"{info.name} is {info.status}."


def _set_weight(given: Given) -> str:
    weight = None if given.optional("weight") is None else given.number("weight")
    [info] = Registry(given.app).set_weights({given.text("agent"): weight})
    return f"{info.name} has the weight {info.weight:g}."


def _open_breaker(given: Given) -> str:
    agent = Registry(given.app).get(given.text("agent")).name
    seconds = None if given.optional("seconds") is None else given.number("seconds")
    given.app.breakers.open_by_hand(agent, by=given.by, reason=given.reason, seconds=seconds)
    return f"Requests to {agent} are refused."


def _close_breaker(given: Given) -> str:
    agent = given.text("agent")
    if not given.app.breakers.close_by_hand(agent):
        raise InvalidMessage(f"the circuit breaker of {agent} is closed already")
    return f"Requests to {agent} are let through."


def _set_quota(given: Given) -> str:
    agent = given.text("agent")
    return f"{agent}: {given.app.limiter.set_quota(agent, given.optional('quota'))}."


def _reset_quota(given: Given) -> str:
    agent = given.text("agent")
    given.app.limiter.reset(agent)
    return f"{agent} may send again."


def _pause_sender(given: Given) -> str:
    agent = given.text("agent")
    given.app.restrictions.pause(agent, by=given.by, reason=given.reason)
    return f"{agent} may not send."


def _resume_sender(given: Given) -> str:
    agent = given.text("agent")
    if not given.app.restrictions.resume(agent):
        raise InvalidMessage(f"{agent} is not paused")
    return f"{agent} may send again."


ACTIONS = tuple(
    Action(name=name, role=Role.OPERATOR, target=target, run=run)
    for name, target, run in (
        ("set-agent-status", ("agent", "status"), _set_status),
        ("set-agent-weight", ("agent", "weight"), _set_weight),
        ("open-breaker", ("agent",), _open_breaker),
        ("close-breaker", ("agent",), _close_breaker),
        ("set-quota", ("agent", "quota"), _set_quota),
        ("reset-quota", ("agent",), _reset_quota),
        ("pause-sender", ("agent",), _pause_sender),
        ("resume-sender", ("agent",), _resume_sender),
    )
)
