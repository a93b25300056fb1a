-- Records that a worker is about to begin messages. Returns for each 1; or 0 if it has ended before; or 2 if there is
-- no receipt of it, and then records nothing.
--
-- KEYS[1]  sorted set: the ids of messages that no worker has begun, by the time at which they expire
-- ARGV[1]  what stands before the id in the key of a message
-- ARGV[2]  the time, as ISO 8601
-- ARGV[3]  the seconds until a receipt is removed
-- then the ids of the messages
local flags = {}
for i = 4, #ARGV do
  local key = ARGV[1] .. ARGV[i]
  local known = redis.call('HMGET', key, 'from', 'outcome', 'delivered_at')
  if not known[1] then
    flags[#flags + 1] = 2
  else
    if not known[3] then
      redis.call('HSET', key, 'delivered_at', ARGV[2])
    end
    redis.call('EXPIRE', key, ARGV[3])
    if not known[2] then  -- a duplicate is not an attempt
      redis.call('HINCRBY', key, 'attempts', 1)
    end
    flags[#flags + 1] = known[2] and 0 or 1
  end
end
redis.call('ZREM', KEYS[1], unpack(ARGV, 4))
return flags
