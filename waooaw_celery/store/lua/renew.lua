-- Renews the leases of open requests of one agent to another. A request that has ended gets none.
--
-- KEYS[1] sorted set: the open requests, by the end of their leases
-- ARGV[1] seconds of a lease
-- ARGV[2] and further: the requests

local time = redis.call('TIME')
local until_ = string.format('%.6f', time[1] + time[2] / 1000000 + ARGV[1])
for number = 2, #ARGV do
    redis.call('ZADD', KEYS[1], 'XX', until_, ARGV[number])
end
redis.call('PEXPIRE', KEYS[1], 2000 * ARGV[1])
