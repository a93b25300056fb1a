"""Draws workflows as Mermaid diagrams (https://mermaid.js.org/syntax/flowchart.html)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from waooaw_celery.workflows.info import WorkflowInfo, WorkflowStep
from waooaw_celery.workflows.states import StepStatus

#: The colours of the states of a step.
_CLASSES = {
    StepStatus.COMPLETED: "fill:#d5f5d5,stroke:#2e7d32",
    StepStatus.FAILED: "fill:#fbd5d5,stroke:#c62828",
    StepStatus.STARTED: "fill:#fff4cc,stroke:#f9a825",
    StepStatus.REGISTERED: "fill:#eeeeee,stroke:#757575",
}


def steps_to_mermaid(workflow: WorkflowInfo, steps: Sequence[WorkflowStep]) -> str:
    """Return the recorded steps of a workflow as a flowchart: those of a branch follow each other.

    Args:
        workflow: the workflow.
        steps: its steps, in the order in which they began.
    """
    lines = ["flowchart TD", f'    start(["{_text(workflow.name)}"])']
    last: dict[str, str] = {"": "start"}
    for number, step in enumerate(steps, 1):
        node = f"s{number}"
        branch = step.path.rpartition("/")[0]
        parent = branch
        while parent not in last:
            parent = parent.rpartition("/")[0]
        lines.append(f'    {node}["{_text(step.path.rpartition("/")[2])}"]:::{step.status.value}')
        lines.append(f"    {last[parent]} --> {node}")
        last[branch] = node
    lines.append(f'    finish(["{_text(workflow.status.value)}"])')
    lines.append(f"    {last['']} --> finish")
    lines += [f"    classDef {status.value} {style}" for status, style in _CLASSES.items()]
    return "\n".join(lines)


def graph_to_mermaid(tasks: Mapping[str, Sequence[str]], labels: Mapping[str, str]) -> str:
    """Return tasks and what they depend on as a flowchart.

    Args:
        tasks: each task with the names of those that come before it.
        labels: the text of each task.
    """
    nodes = {name: f"t{number}" for number, name in enumerate(tasks, 1)}
    lines = ["flowchart TD"]
    lines += [f'    {node}["{_text(labels[name])}"]' for name, node in nodes.items()]
    lines += [f"    {nodes[before]} --> {nodes[name]}" for name, befores in tasks.items() for before in befores]
    return "\n".join(lines)


def _text(text: str) -> str:
    """Return a text that Mermaid shows as it is, within double quotes."""
    shown = "".join(each if each.isprintable() else " " for each in text)
    return shown.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
