#!lua flags=allow-oom
-- Find unacknowledged messages whose lease has ended. Plain Kombu consumers may hold theirs longer.
--
-- KEYS: the unacknowledged messages (hash); the times of their claims (sorted set).
-- ARGV: seconds of a lease; the same for messages that a plain Kombu consumer claimed, which renews nothing;
--       the prefix of the tags of leased messages; the maximum of messages to return.
-- Returns, for each, its tag, the time of its claim, and its entry in the hash.
local lease, foreign, prefix, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local reply, gone = {}, {}
local seen = 0
while true do
    local old = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - lease, 'WITHSCORES', 'LIMIT', seen, 1000)
    for number = 1, #old, 2 do
        local tag, claimed_at = old[number], old[number + 1]
        if string.sub(tag, 1, #prefix) == prefix or tonumber(claimed_at) <= now - foreign then
            local entry = redis.call('HGET', KEYS[1], tag)
            if entry then
                reply[#reply + 1] = tag
                reply[#reply + 1] = claimed_at
                reply[#reply + 1] = entry
            else -- its consumer died between the two commands of an acknowledgement
                gone[#gone + 1] = tag
            end
        end
        if #reply >= 3 * limit or #gone >= 1000 then
            break
        end
    end
    if #reply >= 3 * limit or #gone >= 1000 or #old < 2000 then
        break
    end
    seen = seen + 1000
end
if #gone > 0 then
    redis.call('ZREM', KEYS[2], unpack(gone))
end
return reply
