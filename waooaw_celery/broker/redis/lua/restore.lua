#!lua flags=allow-oom
-- Put an unacknowledged message back into its queue, unless somebody was faster or its lease was renewed.
--
-- KEYS: unacknowledged messages (hash); when each was claimed (sorted set); then, in pairs, lists and doorbells.
-- ARGV: its tag; its queue's name; 'front' or 'back'; its text, empty for what is noted; when it was claimed, or
--       empty for a message that the caller holds itself.
-- Answers whether it was put back.
local noted = redis.call('HGET', KEYS[1], ARGV[1])
if not noted then
    return 0
end
if ARGV[5] ~= '' and tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or 0) > tonumber(ARGV[5]) then
    return 0
end
local text = ARGV[4]
if text == '' then
    text = string.sub(noted, 2, -#(',"",' .. cjson.encode(ARGV[2]) .. ']') - 1)
end
for number = 3, #KEYS, 2 do
    redis.call(ARGV[3] == 'front' and 'RPUSH' or 'LPUSH', KEYS[number], text)
    local bell = KEYS[number + 1]
    if redis.call('EXISTS', bell) == 0 then
        redis.call('LPUSH', bell, 1)
        redis.call('EXPIRE', bell, 60)
    end
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
