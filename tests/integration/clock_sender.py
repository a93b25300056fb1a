"""Sends messages of several kinds to the agent named by the first argument, and prints their ids as JSON."""

from __future__ import annotations

import json
import sys
import time

from waooaw_celery import Message, MessageBus, RequestResponseHandler, create_app

app = create_app("sender", waooaw_sender="tests")
agent, bus = sys.argv[1], MessageBus(app)
ids = {
    "message": bus.send(Message(from_agent="tests", to_agent=agent, ttl_seconds=300)).message_id,
    "delay": app.send_task(f"{agent}.command", args=({},)).id,
    "countdown": app.send_task(f"{agent}.command", args=({},), countdown=1).id,
    "expires": app.send_task(f"{agent}.command", args=({},), expires=60).id,
}
answer = RequestResponseHandler(app).request(agent, "echo", {"value": 5}, timeout=20)
print(json.dumps({"ids": ids, "answer": answer, "local": time.time()}))
app.close()
