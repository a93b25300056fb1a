#!lua flags=allow-oom
-- Make a dead letter of an unacknowledged message, unless somebody was faster or its lease was renewed.
--
-- KEYS: unacknowledged messages (hash); when each was claimed (sorted set); dead letters (stream).
-- ARGV: its tag; its queue's name; the reason; when it was claimed, or empty for a message that the caller holds;
--       most dead letters to keep.
-- Answers whether it was parked.
local noted = redis.call('HGET', KEYS[1], ARGV[1])
if not noted then
    return 0
end
if ARGV[4] ~= '' and tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or 0) > tonumber(ARGV[4]) then
    return 0
end
local suffix = ',"",' .. cjson.encode(ARGV[2]) .. ']'
if string.sub(noted, -#suffix) == suffix then
    noted = string.sub(noted, 2, -#suffix - 1)
end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[5], '*', 'queue', ARGV[2], 'reason', ARGV[3], 'raw', noted)
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
