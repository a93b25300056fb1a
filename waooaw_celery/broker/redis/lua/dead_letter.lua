#!lua flags=allow-oom
-- Make a dead letter of an unacknowledged message, unless it was acknowledged or restored, or its lease renewed.
--
-- KEYS: the unacknowledged messages (hash); the times of their claims (sorted set); the dead letters (stream).
-- ARGV: the message's tag; its queue's name; the reason; the time of its claim, or empty for a message that the
--       caller holds; the maximum of dead letters.
-- Returns 1 if it became a dead letter, else 0.
--
-- Includes groups.lua.
-- include
local entry = redis.call('HGET', KEYS[1], ARGV[1])
if not entry then
    return 0
end
if ARGV[4] ~= '' and tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or 0) > tonumber(ARGV[4]) then
    return 0
end
local suffix = ',"",' .. cjson.encode(ARGV[2]) .. ']'
if string.sub(entry, -#suffix) == suffix then
    entry = string.sub(entry, 2, -#suffix - 1)
end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[5], '*', 'queue', ARGV[2], 'reason', ARGV[3], 'raw', entry)
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
release(KEYS[1], { ARGV[1] }, redis.call('TIME')[1] + 0)
return 1
