"""A test agent whose events go to webhooks. PROBE_NAME is its name, PROBE_HOOKS the options of each, in JSON."""

from __future__ import annotations

import json
import os
from ipaddress import ip_network

from waooaw_celery import Agent, create_app
from waooaw_celery.agents import RetryPolicy
from waooaw_celery.edges import webhook

app = create_app("webhooks", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)

for name, options in json.loads(os.environ["PROBE_HOOKS"]).items():
    networks = [ip_network(each) for each in options.pop("networks", ["127.0.0.0/8"])]
    retries = RetryPolicy(attempts=3, first_delay=0.1, factor=1.0, jitter=False)
    topic = options.pop("topic")
    webhook(agent, topic, name=name, retries=retries, allowed_networks=networks, **options)
