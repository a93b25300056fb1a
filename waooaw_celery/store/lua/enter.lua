-- Takes a place for an open request of one agent to another, if one is free.
--
-- KEYS[1] sorted set: the open requests, by the end of their leases
-- ARGV[1] the request
-- ARGV[2] how many may be open
-- ARGV[3] seconds of a lease
-- ARGV[4] and further: requests that have ended
--
-- Returns 1 if a place was free, else 0.

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for number = 4, #ARGV do
    redis.call('ZREM', KEYS[1], ARGV[number])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now))
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then
    return 0
end
redis.call('ZADD', KEYS[1], string.format('%.6f', now + ARGV[3]), ARGV[1])
redis.call('PEXPIRE', KEYS[1], 2000 * ARGV[3])
return 1
