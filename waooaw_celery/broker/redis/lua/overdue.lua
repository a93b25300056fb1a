#!lua flags=allow-oom
-- Find unacknowledged messages whose lease is over, among those of plain Kombu consumers that may hold theirs longer.
--
-- KEYS: unacknowledged messages (hash); when each was claimed (sorted set).
-- ARGV: seconds of a lease; the same for messages that a plain Kombu consumer claimed, which renews nothing;
--       how the tags of leased messages begin; how many to answer at most.
-- Answers for each its tag, when it was claimed, and what is noted.
local lease, foreign, mark, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local answer, gone = {}, {}
local seen = 0
while true do
    local old = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - lease, 'WITHSCORES', 'LIMIT', seen, 1000)
    for number = 1, #old, 2 do
        local tag, claimed = old[number], old[number + 1]
        if string.sub(tag, 1, #mark) == mark or tonumber(claimed) <= now - foreign then
            local noted = redis.call('HGET', KEYS[1], tag)
            if noted then
                answer[#answer + 1] = tag
                answer[#answer + 1] = claimed
                answer[#answer + 1] = noted
            else -- acknowledged by a consumer that died in the middle of it
                gone[#gone + 1] = tag
            end
        end
        if #answer >= 3 * limit or #gone >= 1000 then
            break
        end
    end
    if #answer >= 3 * limit or #gone >= 1000 or #old < 2000 then
        break
    end
    seen = seen + 1000
end
if #gone > 0 then
    redis.call('ZREM', KEYS[2], unpack(gone))
end
return answer
