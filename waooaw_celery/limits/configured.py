"""The limiter that an application's settings describe."""

from __future__ import annotations

from waooaw_celery.limits.grammar import configured_quota
from waooaw_celery.limits.limiter import RateLimiter
from waooaw_celery.limits.memory import MemoryStorage
from waooaw_celery.limits.redis import DEADLINE, RedisStorage
from waooaw_celery.settings import RateLimitStorage, WaooawSettings
from waooaw_celery.store.connection import connect, store_url

#: What to do where there is no Redis.
_WITHOUT = "to count for one process only, set waooaw_rate_limit_storage = 'memory'"


def configured_limiter(settings: WaooawSettings, *others: str | None) -> RateLimiter:
    """Return what counts what agents send.

    Args:
        settings: of the application.
        others: URLs of its result backend and its broker: where it is counted, unless ``waooaw_redis_url`` is set.

    Raises:
        ConfigurationError: a limit cannot be read, or there is no Redis to count in.
    """
    in_memory = settings.rate_limit_storage is RateLimitStorage.MEMORY
    usual = "unlimited" if settings.rate_limit is None else settings.rate_limit
    return RateLimiter(
        MemoryStorage()
        if in_memory
        else RedisStorage(connect(store_url(settings.redis_url, *others, without=_WITHOUT), DEADLINE, once=True)),
        configured_quota("waooaw_rate_limit", usual),
        {
            agent: configured_quota(f"waooaw_rate_limits[{agent!r}]", quota)
            for agent, quota in settings.rate_limits.items()
        },
        urgent_reserve=settings.urgent_reserve,
        fail_open=settings.rate_limit_fail_open,
    )
