"""Outside agents of A2A as agents of ours. PROBE_CARDS has the arguments of each, by what follows PROBE_NAME."""

from __future__ import annotations

import json
import os
from ipaddress import ip_network

from waooaw_celery import create_app
from waooaw_celery.edges import RemoteAgent

app = create_app("a2a", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agents = [
    RemoteAgent(
        f"{os.environ['PROBE_NAME']}{ending}",
        options["card"],
        app,
        skills=["forecast", "think-hard"],
        keys=options.get("keys"),
        allowed_networks=[ip_network(each) for each in options.get("networks", ["127.0.0.0/8"])],
    )
    for ending, options in json.loads(os.environ["PROBE_CARDS"]).items()
]
