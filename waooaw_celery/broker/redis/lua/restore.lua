#!lua flags=allow-oom
-- Put an unacknowledged message back into its queue, unless it was acknowledged or restored, or its lease renewed.
--
-- KEYS: the unacknowledged messages (hash); the times of their claims (sorted set); then pairs of list and doorbell.
-- ARGV: the message's tag; its queue's name; 'front' or 'back'; its text, or empty for the text that was claimed;
--       the time of its claim, or empty for a message that the caller holds.
-- Returns 1 if it was put back, else 0. A message of a group goes back into its group, as the next one, if it is to be
-- at the front.
--
-- Includes groups.lua.
-- include
local time = redis.call('TIME')
local entry = redis.call('HGET', KEYS[1], ARGV[1])
if not entry then
    return 0
end
if ARGV[5] ~= '' and tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or 0) > tonumber(ARGV[5]) then
    return 0
end
local text = ARGV[4]
if text == '' then
    text = string.sub(entry, 2, -#(',"",' .. cjson.encode(ARGV[2]) .. ']') - 1)
end
local is_grouped = ARGV[3] == 'front' and put_back(KEYS[1], ARGV[1], text, time[1] + 0)
for number = 3, is_grouped and 0 or #KEYS, 2 do
    redis.call(ARGV[3] == 'front' and 'RPUSH' or 'LPUSH', KEYS[number], text)
    local bell = KEYS[number + 1]
    if redis.call('EXISTS', bell) == 0 then
        redis.call('LPUSH', bell, 1)
        redis.call('EXPIRE', bell, 60)
    end
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
release(KEYS[1], { ARGV[1] }, time[1] + 0)
return 1
