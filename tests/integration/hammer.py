"""Acquires from a rate limit as fast as possible for some seconds, and prints when each call was allowed."""

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
    limiter.status("hammered")  # to connect, and to load the script
    print("ready", flush=True)
    sys.stdin.readline()
    calls, allowed = 0, []
    first = before = time.monotonic()
    while before - first < seconds:
        before = time.monotonic()
        calls += 1
        try:
            limiter.acquire("hammered")
        except RateLimitExceeded:
            continue
        allowed.append((before, time.monotonic()))
    print(json.dumps({"tries": calls, "passed": allowed, "first": first, "last": before}))
