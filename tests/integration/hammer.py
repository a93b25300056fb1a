"""Takes as much as a rate limit gives, for some seconds, and prints between which moments each message passed."""

from __future__ import annotations

import json
import sys
import time

from waooaw_celery import RateLimiter, RateLimitExceeded
from waooaw_celery.limits.redis import RedisStorage
from waooaw_celery.store.connection import connect

if __name__ == "__main__":
    url, quota, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    limiter = RateLimiter(RedisStorage(connect(url)), quota)
    limiter.status("hammered")  # connected, and the script is there
    print("ready", flush=True)
    sys.stdin.readline()
    tries, passed = 0, []
    first = before = time.monotonic()
    while before - first < seconds:
        before = time.monotonic()
        tries += 1
        try:
            limiter.acquire("hammered")
        except RateLimitExceeded:
            continue
        passed.append((before, time.monotonic()))
    print(json.dumps({"tries": tries, "passed": passed, "first": first, "last": before}))
