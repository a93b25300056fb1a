#!lua flags=allow-oom
-- Renew the lease of messages that are still noted as unacknowledged.
--
-- KEYS: when each was claimed (sorted set).
-- ARGV: seconds by which the lease is to end earlier than a whole one; their tags.
-- Answers how many of them are still leased.
local time = redis.call('TIME')
local moment = time[1] + time[2] / 1000000 - tonumber(ARGV[1])
local leased = 0
for number = 2, #ARGV do
    local tag = ARGV[number]
    if redis.call('ZSCORE', KEYS[1], tag) then
        redis.call('ZADD', KEYS[1], moment, tag)
        leased = leased + 1
    end
end
return leased
