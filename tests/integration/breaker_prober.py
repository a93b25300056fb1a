"""Takes the place of the probe of a circuit breaker, says so, and waits until a test kills this process.

Its arguments: the settings of the application as JSON, the agent, and the timeout of the request in seconds.
"""

from __future__ import annotations

import json
import sys
import time

from waooaw_celery import create_app

app = create_app("prober", **json.loads(sys.argv[1]))
print(app.breakers.admit(sys.argv[2], "the request of the prober", float(sys.argv[3])), flush=True)
time.sleep(600)
