-- Records that a worker is about to begin a message. Returns 1, or 0 if the message has ended before.
--
-- KEYS[1]  hash: the receipt of the message
-- KEYS[2]  sorted set: the ids of messages that no worker has begun, by the time at which they expire
-- KEYS[3]  sorted set: the ids of messages by the time at which they were sent
-- ARGV[1]  the id of the message
-- ARGV[2]  the time, as ISO 8601
-- ARGV[3]  the seconds until the receipt is removed
-- ARGV[4]  when the message was sent, in seconds, followed by names and values of its facts; or nothing
if #ARGV > 3 then
  redis.call('HSET', KEYS[1], unpack(ARGV, 5))
  redis.call('ZADD', KEYS[3], 'NX', ARGV[4], ARGV[1])
end
redis.call('HSETNX', KEYS[1], 'delivered_at', ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
if redis.call('HEXISTS', KEYS[1], 'outcome') == 1 then
  return 0  -- a duplicate is not an attempt
end
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
return 1
