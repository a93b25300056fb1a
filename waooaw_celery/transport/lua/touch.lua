#!lua flags=allow-oom
-- Renew the lease of messages that are still noted as unacknowledged.
--
-- KEYS: when each was claimed (sorted set).
-- ARGV: their tags.
-- Answers how many of them are still leased.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local leased = 0
for _, tag in ipairs(ARGV) do
    if redis.call('ZSCORE', KEYS[1], tag) then
        redis.call('ZADD', KEYS[1], now, tag)
        leased = leased + 1
    end
end
return leased
