"""A bad server of tools: ``mcp_raw_server.py <file of effects> [dead]``. It goes on after the end of input."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def answer(message: dict[str, Any]) -> None:
    """Answer a request, or not, or wrongly."""
    method, params = message["method"], message.get("params") or {}
    result: dict[str, Any] | None = {}
    if method == "initialize":
        result = {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "raw", "version": "1"},
        }
    elif method == "tools/list":
        result = {"tools": [{"name": "ok", "inputSchema": {"type": "object"}}]}
    elif method == "tools/call" and params["name"] == "garbage":
        print('{"this is": no JSON', flush=True)
        return
    elif method == "tools/call" and params["name"] == "lie":
        result = {"content": "not a list"}
    elif method == "tools/call":
        result = {"content": [{"type": "text", "text": str(os.getpid())}]}
    else:
        error = {"code": -32601, "message": "unknown method"}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}), flush=True)
        return
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)


if __name__ == "__main__":
    with Path(sys.argv[1]).open("a") as file:
        file.write(f"{os.getpid()}\n")
    if sys.argv[2:] == ["dead"]:
        sys.exit(3)
    for line in sys.stdin:
        found = json.loads(line)
        if "id" in found:
            answer(found)
    time.sleep(3600)
