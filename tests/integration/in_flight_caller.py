"""Takes places for open requests, says so, and waits until a test kills this process.

Its arguments: the settings of the application as JSON, the requested agent, and how many places it takes.
"""

from __future__ import annotations

import json
import sys
import time

from waooaw_celery import create_app

app = create_app("caller", **json.loads(sys.argv[1]))
for number in range(int(sys.argv[3])):
    assert app.in_flight.enter("boss", sys.argv[2], f"request {number}") is not None
print("entered", flush=True)
time.sleep(600)
