-- Records messages before they are published, and returns for each whether it is new: 1 or 0.
--
-- KEYS[1]  sorted set: the ids of messages by the time at which they were sent
-- KEYS[2]  sorted set: the ids of messages that no worker has begun, by the time at which they expire
-- ARGV[1]  what stands before the id in the key of a message
-- ARGV[2]  the time, in seconds: ids of older messages are removed from both sets
-- then for each message: its id, when it was sent and when it expires ("" for never), in seconds of the clock, the
-- seconds until its receipt is removed, and its facts: from, to, handler, type, priority, sent_at, correlation_id
local new = {}
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[2])
for i = 3, #ARGV, 11 do
  local id, key = ARGV[i], ARGV[1] .. ARGV[i]
  redis.call('HSET', key, 'from', ARGV[i + 4], 'to', ARGV[i + 5], 'handler', ARGV[i + 6], 'type', ARGV[i + 7],
    'priority', ARGV[i + 8], 'sent_at', ARGV[i + 9], 'correlation_id', ARGV[i + 10])
  redis.call('EXPIRE', key, ARGV[i + 3])
  if ARGV[i + 2] ~= '' then
    redis.call('ZADD', KEYS[2], ARGV[i + 2], id)
  end
  new[#new + 1] = redis.call('ZADD', KEYS[1], 'NX', ARGV[i + 1], id)
end
return new
