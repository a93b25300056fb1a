"""Builds the rate limiter from an application's settings."""

from __future__ import annotations

from collections.abc import Callable

from waooaw_celery.limits.grammar import parse_quota_setting
from waooaw_celery.limits.limiter import RateLimiter
from waooaw_celery.limits.memory import MemoryStorage
from waooaw_celery.limits.redis import DEADLINE_SECONDS, RedisStorage
from waooaw_celery.limits.storage import LimitStorage
from waooaw_celery.settings import RateLimitStorage, WaooawSettings
from waooaw_celery.store.connection import connect, store_url
from waooaw_celery.store.restrictions import Restrictions

#: What to do where there is no Redis.
_WITHOUT = "or count in each process instead: set waooaw_rate_limit_storage = 'memory'"


def configured_limiter(
    settings: WaooawSettings,
    *fallback_urls: str | None,
    prefix: str = "",
    restrictions: Callable[[], Restrictions] | None = None,
    storage: LimitStorage | None = None,
) -> RateLimiter:
    """Return the rate limiter of an application.

    Args:
        settings: The application's settings.
        fallback_urls: URLs of its result backend and broker. The first Redis among them stores the counts when
            ``waooaw_redis_url`` is not set.
        prefix: What stands before every key of the counts.
        restrictions: Returns where to note the agents whose quota is set for all processes; None: nowhere.
        storage: Where messages are counted; None: where the settings say.

    Raises:
        ConfigurationError: A limit is invalid, or no Redis is configured to store the counts.
    """
    in_memory = settings.rate_limit_storage is RateLimitStorage.MEMORY
    default = "unlimited" if settings.rate_limit is None else settings.rate_limit
    if storage is None and in_memory:
        storage, restrictions = MemoryStorage(), None
    return RateLimiter(
        storage
        or RedisStorage(
            connect(store_url(settings.redis_url, *fallback_urls, without=_WITHOUT), DEADLINE_SECONDS, once=True),
            prefix=prefix,
        ),
        parse_quota_setting("waooaw_rate_limit", default),
        {
            agent: parse_quota_setting(f"waooaw_rate_limits[{agent!r}]", quota)
            for agent, quota in settings.rate_limits.items()
        },
        urgent_reserve=settings.urgent_reserve,
        fail_open=settings.rate_limit_fail_open,
        restrictions=None if restrictions is None else restrictions(),
    )
