-- Records the same outcome of messages; the first outcome of each counts.
--
-- KEYS[1]  sorted set: the ids of messages that no worker has begun, by the time at which they expire
-- ARGV[1]  what stands before the id in the key of a message
-- ARGV[2]  the outcome, as JSON
-- ARGV[3]  the seconds until a receipt is removed
-- then the ids of the messages
for i = 4, #ARGV do
  local key = ARGV[1] .. ARGV[i]
  redis.call('HSETNX', key, 'outcome', ARGV[2])
  redis.call('EXPIRE', key, ARGV[3])
end
redis.call('ZREM', KEYS[1], unpack(ARGV, 4))
