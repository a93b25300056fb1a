#!lua
-- Ring the doorbell of a queue for a consumer that may be waiting.
--
-- KEYS: the queue's doorbell.
if redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('LPUSH', KEYS[1], 1)
    redis.call('EXPIRE', KEYS[1], 60) -- the queue may have no consumer
end
