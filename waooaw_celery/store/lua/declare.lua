-- Declares an agent for one of its workers: what the agent handles, and until when the worker counts as living.
-- All times are the server's: a worker with a wrong clock would expire those of others.
-- KEYS: the names of all agents; the agent; its workers; the report of this worker; what it declares.
-- ARGV: the agent's name; its handlers; its capabilities; the worker; the seconds for which it lives; its report; what it declares.
local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('HSETNX', KEYS[2], 'declared_at', now)
redis.call('HSET', KEYS[2], 'handlers', ARGV[2], 'capabilities', ARGV[3], 'last_seen', now)
redis.call('ZADD', KEYS[3], string.format('%.6f', tonumber(now) + tonumber(ARGV[5])), ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
redis.call('SET', KEYS[4], ARGV[6], 'PX', string.format('%d', math.max(tonumber(ARGV[5]) * 1000, 1)))
if KEYS[5] then
  redis.call('SET', KEYS[5], ARGV[7], 'PX', string.format('%d', math.max(tonumber(ARGV[5]) * 1000, 1)))
end
