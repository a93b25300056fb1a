"""Sends one request and waits for its answer, until a test kills this process.

Its arguments: the agent, the method, the parameters as JSON, the timeout in seconds. CELERY_BROKER_URL and
CELERY_RESULT_BACKEND name the servers.
"""

from __future__ import annotations

import json
import sys

from waooaw_celery import RequestResponseHandler, create_app

agent, method, params, timeout = sys.argv[1:]
app = create_app("asker", waooaw_sender="asker")
RequestResponseHandler(app).request(agent, method, json.loads(params), timeout=float(timeout))
