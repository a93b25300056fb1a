"""Requests an agent again and again, until a test ends this process, and notes each outcome in a file.

Its arguments: the settings of the application as JSON, the agent, the method, the timeout of each request in
seconds, and the file. A line has the process id, the outcome, and when the request began and ended.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from waooaw_celery import RequestResponseHandler, create_app
from waooaw_celery.agents import CircuitOpen, RequestTimeout

settings, agent, method, timeout, marks = sys.argv[1:]
app = create_app("caller", **json.loads(settings))
requests = RequestResponseHandler(app)
with Path(marks).open("a", buffering=1) as file:
    while True:
        began = time.time()
        try:
            requests.request(agent, method, timeout=float(timeout))
        except (CircuitOpen, RequestTimeout) as error:
            outcome = type(error).__name__
        else:
            outcome = "ok"
        file.write(f"{os.getpid()} {outcome} {began} {time.time()}\n")
        time.sleep(0.05)
