#!lua
-- Put messages into a queue, and ring the doorbell for a consumer that may be waiting.
--
-- KEYS: the list; the queue's doorbell.
-- ARGV: the messages, in the order in which they are consumed.
redis.call('LPUSH', KEYS[1], unpack(ARGV))
if redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('LPUSH', KEYS[2], 1)
    redis.call('EXPIRE', KEYS[2], 60) -- the queue may have no consumer
end
