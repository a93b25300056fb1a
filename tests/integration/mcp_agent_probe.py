"""Agents whose methods are tools of outside servers. PROBE_AGENTS is a JSON object of the arguments of each."""

from __future__ import annotations

import json
import os
from ipaddress import ip_network

from waooaw_celery import Agent, create_app
from waooaw_celery.edges.mcp.mcp_agent import McpAgent

app = create_app("mcp", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)
for name, arguments in json.loads(os.environ["PROBE_AGENTS"]).items():
    networks = [ip_network(each) for each in arguments.pop("allowed_networks", [])]
    McpAgent(name, app, allowed_networks=networks, **arguments)
