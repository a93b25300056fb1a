#!lua
-- Ring for a consumer that may be waiting for messages.
--
-- KEYS: a queue's doorbell.
if redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('LPUSH', KEYS[1], 1)
    redis.call('EXPIRE', KEYS[1], 60) -- nobody may be there to answer it
end
