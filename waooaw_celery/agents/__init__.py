"""Agents, messages, requests and events, and every other public name of the package.

A name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from waooaw_celery.agents.agent import Agent
    from waooaw_celery.agents.bus import Everyone, MessageBus
    from waooaw_celery.agents.events.bus import EventBus
    from waooaw_celery.agents.events.cloudevents import from_cloudevent, to_cloudevent
    from waooaw_celery.agents.requests.handler import RequestResponseHandler
    from waooaw_celery.agents.requests.response import Response
    from waooaw_celery.agents.scaling.agent_pool import AgentPool
    from waooaw_celery.agents.scaling.pool_size import PoolSize, WorkerPool
    from waooaw_celery.app.app import AgentApp, create_app
    from waooaw_celery.app.events.delivery import Published
    from waooaw_celery.discovery.address import CapabilityAddress
    from waooaw_celery.discovery.agent_info import AgentInfo, AgentStatus
    from waooaw_celery.discovery.declaration import Capability
    from waooaw_celery.discovery.health.state import Health
    from waooaw_celery.discovery.policies import Policy
    from waooaw_celery.discovery.registry import Registry
    from waooaw_celery.errors import (
        AuditUnavailable,
        BackendUnavailable,
        BlockingCall,
        BrokerUnavailable,
        Cancelled,
        CircuitOpen,
        CircularRequest,
        ClockSkew,
        ConfigurationError,
        DeadlineExceeded,
        DecodingFailed,
        DeliveryLimitExceeded,
        EncodingFailed,
        Expired,
        HandlerExited,
        InvalidArguments,
        InvalidMessage,
        InvalidSchema,
        LedgerMismatch,
        NoAgentAvailable,
        NoHandler,
        NotPermitted,
        NotScalable,
        NotStoppable,
        NoWorker,
        PayloadAltered,
        PayloadMissing,
        PayloadNotLoaded,
        QueueFull,
        RateLimitExceeded,
        ReferenceStoreUnavailable,
        RemoteError,
        RequestError,
        RequestTimeout,
        RequeueLimitExceeded,
        SchemaConflict,
        SchemaProblem,
        SchemaViolation,
        SenderPaused,
        SettingOverridden,
        SignalTimeout,
        StepFailed,
        StepTimeout,
        StoreUnavailable,
        StreamBroken,
        ToolError,
        ToolServerUnavailable,
        TooManyInFlight,
        UnknownAgent,
        UnknownDeadLetter,
        UnknownMessage,
        UnknownMethod,
        UnknownReplay,
        UnknownSender,
        UnknownSubscription,
        UnknownWorkflow,
        WaooawError,
        WorkflowChanged,
        WorkflowConflict,
        WorkflowEnded,
        WorkflowFailed,
    )
    from waooaw_celery.ledger.events.replays import Replay, ReplayState
    from waooaw_celery.ledger.read.records import AuditEvent, AuditRecord, Page, Statistics
    from waooaw_celery.ledger.retention.holds import Hold, HoldKind
    from waooaw_celery.ledger.retention.removal import Removal
    from waooaw_celery.ledger.retention.retention import Retention
    from waooaw_celery.ledger.trail import MessageAuditTrail
    from waooaw_celery.limits.limiter import RateLimiter
    from waooaw_celery.limits.memory import MemoryStorage
    from waooaw_celery.maintenance.erasure import Erasure, erase
    from waooaw_celery.maintenance.tasks import register_periodic_tasks
    from waooaw_celery.messages.enums import MessageStatus, MessageType, Priority, RetentionPolicy
    from waooaw_celery.messages.message import Message
    from waooaw_celery.messages.queues import QueueDepth
    from waooaw_celery.messages.receipt import DeliveryReceipt
    from waooaw_celery.messages.topics.attributes import EventAttributes
    from waooaw_celery.messages.topics.schemas import SchemaCheck, TopicSchema
    from waooaw_celery.monitoring.metrics.prometheus import register_metrics
    from waooaw_celery.wire.serializer import MessageSerializer
    from waooaw_celery.worker.batches.message_batch import MessageBatch
    from waooaw_celery.worker.current_task import current_message
    from waooaw_celery.worker.execution.streaming import Final
    from waooaw_celery.worker.retries.retry_policy import RetryPolicy
    from waooaw_celery.workflows.blocking_flow import BlockingFlow
    from waooaw_celery.workflows.flow import Flow, RaceResult
    from waooaw_celery.workflows.graph.references import result_of
    from waooaw_celery.workflows.graph.running import run_task_graph
    from waooaw_celery.workflows.graph.task_graph import TaskGraph
    from waooaw_celery.workflows.info import WorkflowInfo, WorkflowPage, WorkflowStatistics, WorkflowStep
    from waooaw_celery.workflows.pydantic_ai.durable_agent import DurableAgent
    from waooaw_celery.workflows.schedule import schedule_workflow
    from waooaw_celery.workflows.states import StepKind, StepStatus, WorkflowStatus
    from waooaw_celery.workflows.workflows import Workflows

#: Each public name, and the module that defines it.
_MODULES = {
    "Agent": "waooaw_celery.agents.agent",
    "AgentApp": "waooaw_celery.app.app",
    "AgentPool": "waooaw_celery.agents.scaling.agent_pool",
    "AgentInfo": "waooaw_celery.discovery.agent_info",
    "AgentStatus": "waooaw_celery.discovery.agent_info",
    "AuditEvent": "waooaw_celery.ledger.read.records",
    "AuditRecord": "waooaw_celery.ledger.read.records",
    "AuditUnavailable": "waooaw_celery.errors",
    "BackendUnavailable": "waooaw_celery.errors",
    "BlockingCall": "waooaw_celery.errors",
    "BlockingFlow": "waooaw_celery.workflows.blocking_flow",
    "BrokerUnavailable": "waooaw_celery.errors",
    "Cancelled": "waooaw_celery.errors",
    "Capability": "waooaw_celery.discovery.declaration",
    "CapabilityAddress": "waooaw_celery.discovery.address",
    "CircuitOpen": "waooaw_celery.errors",
    "CircularRequest": "waooaw_celery.errors",
    "ClockSkew": "waooaw_celery.errors",
    "ConfigurationError": "waooaw_celery.errors",
    "DeadlineExceeded": "waooaw_celery.errors",
    "DecodingFailed": "waooaw_celery.errors",
    "DeliveryLimitExceeded": "waooaw_celery.errors",
    "DeliveryReceipt": "waooaw_celery.messages.receipt",
    "DurableAgent": "waooaw_celery.workflows.pydantic_ai.durable_agent",
    "EncodingFailed": "waooaw_celery.errors",
    "Erasure": "waooaw_celery.maintenance.erasure",
    "EventAttributes": "waooaw_celery.messages.topics.attributes",
    "EventBus": "waooaw_celery.agents.events.bus",
    "Everyone": "waooaw_celery.agents.bus",
    "Expired": "waooaw_celery.errors",
    "Final": "waooaw_celery.worker.execution.streaming",
    "Flow": "waooaw_celery.workflows.flow",
    "HandlerExited": "waooaw_celery.errors",
    "Health": "waooaw_celery.discovery.health.state",
    "Hold": "waooaw_celery.ledger.retention.holds",
    "HoldKind": "waooaw_celery.ledger.retention.holds",
    "InvalidArguments": "waooaw_celery.errors",
    "InvalidMessage": "waooaw_celery.errors",
    "InvalidSchema": "waooaw_celery.errors",
    "LedgerMismatch": "waooaw_celery.errors",
    "MemoryStorage": "waooaw_celery.limits.memory",
    "Message": "waooaw_celery.messages.message",
    "MessageAuditTrail": "waooaw_celery.ledger.trail",
    "MessageBatch": "waooaw_celery.worker.batches.message_batch",
    "MessageBus": "waooaw_celery.agents.bus",
    "MessageSerializer": "waooaw_celery.wire.serializer",
    "MessageStatus": "waooaw_celery.messages.enums",
    "MessageType": "waooaw_celery.messages.enums",
    "NoAgentAvailable": "waooaw_celery.errors",
    "NoHandler": "waooaw_celery.errors",
    "NoWorker": "waooaw_celery.errors",
    "NotPermitted": "waooaw_celery.errors",
    "NotScalable": "waooaw_celery.errors",
    "NotStoppable": "waooaw_celery.errors",
    "Page": "waooaw_celery.ledger.read.records",
    "PayloadAltered": "waooaw_celery.errors",
    "PayloadMissing": "waooaw_celery.errors",
    "PayloadNotLoaded": "waooaw_celery.errors",
    "PoolSize": "waooaw_celery.agents.scaling.pool_size",
    "Policy": "waooaw_celery.discovery.policies",
    "Priority": "waooaw_celery.messages.enums",
    "Published": "waooaw_celery.app.events.delivery",
    "QueueDepth": "waooaw_celery.messages.queues",
    "RaceResult": "waooaw_celery.workflows.flow",
    "QueueFull": "waooaw_celery.errors",
    "RateLimitExceeded": "waooaw_celery.errors",
    "RateLimiter": "waooaw_celery.limits.limiter",
    "Registry": "waooaw_celery.discovery.registry",
    "ReferenceStoreUnavailable": "waooaw_celery.errors",
    "RemoteError": "waooaw_celery.errors",
    "Removal": "waooaw_celery.ledger.retention.removal",
    "Replay": "waooaw_celery.ledger.events.replays",
    "ReplayState": "waooaw_celery.ledger.events.replays",
    "RequestError": "waooaw_celery.errors",
    "RequestResponseHandler": "waooaw_celery.agents.requests.handler",
    "RequestTimeout": "waooaw_celery.errors",
    "RequeueLimitExceeded": "waooaw_celery.errors",
    "Response": "waooaw_celery.agents.requests.response",
    "Retention": "waooaw_celery.ledger.retention.retention",
    "RetentionPolicy": "waooaw_celery.messages.enums",
    "RetryPolicy": "waooaw_celery.worker.retries.retry_policy",
    "SchemaCheck": "waooaw_celery.messages.topics.schemas",
    "SchemaConflict": "waooaw_celery.errors",
    "SchemaProblem": "waooaw_celery.errors",
    "SchemaViolation": "waooaw_celery.errors",
    "SenderPaused": "waooaw_celery.errors",
    "SettingOverridden": "waooaw_celery.errors",
    "SignalTimeout": "waooaw_celery.errors",
    "Statistics": "waooaw_celery.ledger.read.records",
    "StepFailed": "waooaw_celery.errors",
    "StepKind": "waooaw_celery.workflows.states",
    "StepStatus": "waooaw_celery.workflows.states",
    "StepTimeout": "waooaw_celery.errors",
    "StoreUnavailable": "waooaw_celery.errors",
    "StreamBroken": "waooaw_celery.errors",
    "TaskGraph": "waooaw_celery.workflows.graph.task_graph",
    "TooManyInFlight": "waooaw_celery.errors",
    "ToolError": "waooaw_celery.errors",
    "ToolServerUnavailable": "waooaw_celery.errors",
    "TopicSchema": "waooaw_celery.messages.topics.schemas",
    "UnknownAgent": "waooaw_celery.errors",
    "UnknownDeadLetter": "waooaw_celery.errors",
    "UnknownMessage": "waooaw_celery.errors",
    "UnknownMethod": "waooaw_celery.errors",
    "UnknownReplay": "waooaw_celery.errors",
    "UnknownSender": "waooaw_celery.errors",
    "UnknownSubscription": "waooaw_celery.errors",
    "UnknownWorkflow": "waooaw_celery.errors",
    "WaooawError": "waooaw_celery.errors",
    "WorkerPool": "waooaw_celery.agents.scaling.pool_size",
    "WorkflowChanged": "waooaw_celery.errors",
    "WorkflowConflict": "waooaw_celery.errors",
    "WorkflowEnded": "waooaw_celery.errors",
    "WorkflowFailed": "waooaw_celery.errors",
    "WorkflowInfo": "waooaw_celery.workflows.info",
    "WorkflowPage": "waooaw_celery.workflows.info",
    "WorkflowStatistics": "waooaw_celery.workflows.info",
    "WorkflowStatus": "waooaw_celery.workflows.states",
    "WorkflowStep": "waooaw_celery.workflows.info",
    "Workflows": "waooaw_celery.workflows.workflows",
    "create_app": "waooaw_celery.app.app",
    "current_message": "waooaw_celery.worker.current_task",
    "erase": "waooaw_celery.maintenance.erasure",
    "from_cloudevent": "waooaw_celery.agents.events.cloudevents",
    "register_metrics": "waooaw_celery.monitoring.metrics.prometheus",
    "register_periodic_tasks": "waooaw_celery.maintenance.tasks",
    "result_of": "waooaw_celery.workflows.graph.references",
    "run_task_graph": "waooaw_celery.workflows.graph.running",
    "schedule_workflow": "waooaw_celery.workflows.schedule",
    "to_cloudevent": "waooaw_celery.agents.events.cloudevents",
}

__all__ = [
    "Agent",
    "AgentApp",
    "AgentInfo",
    "AgentPool",
    "AgentStatus",
    "AuditEvent",
    "AuditRecord",
    "AuditUnavailable",
    "BackendUnavailable",
    "BlockingCall",
    "BlockingFlow",
    "BrokerUnavailable",
    "Cancelled",
    "Capability",
    "CapabilityAddress",
    "CircuitOpen",
    "CircularRequest",
    "ClockSkew",
    "ConfigurationError",
    "DeadlineExceeded",
    "DecodingFailed",
    "DeliveryLimitExceeded",
    "DeliveryReceipt",
    "DurableAgent",
    "EncodingFailed",
    "Erasure",
    "EventAttributes",
    "EventBus",
    "Everyone",
    "Expired",
    "Final",
    "Flow",
    "HandlerExited",
    "Health",
    "Hold",
    "HoldKind",
    "InvalidArguments",
    "InvalidMessage",
    "InvalidSchema",
    "LedgerMismatch",
    "MemoryStorage",
    "Message",
    "MessageAuditTrail",
    "MessageBatch",
    "MessageBus",
    "MessageSerializer",
    "MessageStatus",
    "MessageType",
    "NoAgentAvailable",
    "NoHandler",
    "NoWorker",
    "NotPermitted",
    "NotScalable",
    "NotStoppable",
    "Page",
    "PayloadAltered",
    "PayloadMissing",
    "PayloadNotLoaded",
    "Policy",
    "PoolSize",
    "Priority",
    "Published",
    "QueueDepth",
    "QueueFull",
    "RaceResult",
    "RateLimitExceeded",
    "RateLimiter",
    "ReferenceStoreUnavailable",
    "Registry",
    "RemoteError",
    "Removal",
    "Replay",
    "ReplayState",
    "RequestError",
    "RequestResponseHandler",
    "RequestTimeout",
    "RequeueLimitExceeded",
    "Response",
    "Retention",
    "RetentionPolicy",
    "RetryPolicy",
    "SchemaCheck",
    "SchemaConflict",
    "SchemaProblem",
    "SchemaViolation",
    "SenderPaused",
    "SettingOverridden",
    "SignalTimeout",
    "Statistics",
    "StepFailed",
    "StepKind",
    "StepStatus",
    "StepTimeout",
    "StoreUnavailable",
    "StreamBroken",
    "TaskGraph",
    "TooManyInFlight",
    "ToolError",
    "ToolServerUnavailable",
    "TopicSchema",
    "UnknownAgent",
    "UnknownDeadLetter",
    "UnknownMessage",
    "UnknownMethod",
    "UnknownReplay",
    "UnknownSender",
    "UnknownSubscription",
    "UnknownWorkflow",
    "WaooawError",
    "WorkerPool",
    "WorkflowChanged",
    "WorkflowConflict",
    "WorkflowEnded",
    "WorkflowFailed",
    "WorkflowInfo",
    "WorkflowPage",
    "WorkflowStatistics",
    "WorkflowStatus",
    "WorkflowStep",
    "Workflows",
    "create_app",
    "current_message",
    "erase",
    "from_cloudevent",
    "register_metrics",
    "register_periodic_tasks",
    "result_of",
    "run_task_graph",
    "schedule_workflow",
    "to_cloudevent",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
