"""A workflow: a report on documents is researched by analysts, filed, reviewed by a person, and published."""

from __future__ import annotations

from waooaw_celery.agents import Flow
from waooaw_celery.errors import WaooawError
from waooaw_celery.workflows.steps.step import Step

#: Documents that the analysts measure at the same time.
AT_ONCE = 2


class ReviewRefused(WaooawError):
    """The reviewer did not approve a report."""


async def report(flow: Flow, title: str, documents: dict[str, str], analysts: list[str]) -> dict[str, object]:
    """Research, file, let a person review, and publish a report; if the review refuses it, it is withdrawn.

    Args:
        flow: the steps of the workflow.
        title: the title of the report.
        documents: the texts, by name.
        analysts: the agents that measure them.
    """
    names = sorted(documents)

    def research(number: int) -> Step:
        text = documents[names[number]]
        return flow.request(analysts[number % len(analysts)], "words", {"text": text}, retry=3)

    words = sum(await flow.map(research, range(len(names)), limit=AT_ONCE))
    await flow.request("archivist", "file", {"title": title, "words": words})
    flow.compensate("archivist", "withdraw", {"title": title})
    flow.progress({"filed": title})
    review = await flow.wait_for("review")
    if not review["approved"]:
        raise ReviewRefused(f"{review['by']} refused {title!r}")
    await flow.publish("report.published", {"title": title, "words": words})
    return {"title": title, "words": words, "documents": len(names), "approved_by": review["by"]}
