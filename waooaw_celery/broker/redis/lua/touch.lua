#!lua flags=allow-oom
-- Renew the leases of messages that are still unacknowledged.
--
-- KEYS: the times of the claims (sorted set).
-- ARGV: seconds by which the leases are shorter than usual; the messages' tags.
-- Returns how many of the messages are still leased.
local time = redis.call('TIME')
local claimed_at = time[1] + time[2] / 1000000 - tonumber(ARGV[1])
local leased = 0
for number = 2, #ARGV do
    local tag = ARGV[number]
    if redis.call('ZSCORE', KEYS[1], tag) then
        redis.call('ZADD', KEYS[1], claimed_at, tag)
        leased = leased + 1
    end
end
return leased
