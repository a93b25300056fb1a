-- Records the outcome of a message; the first one counts.
--
-- KEYS[1]  hash: the receipt of the message
-- KEYS[2]  sorted set: the ids of messages that no worker has begun, by the time at which they expire
-- ARGV[1]  the id of the message
-- ARGV[2]  the outcome, as JSON
-- ARGV[3]  the seconds until the receipt is removed
redis.call('HSETNX', KEYS[1], 'outcome', ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
