#!lua flags=allow-oom
-- Forget what was handled, and take messages out of queues, noting them as unacknowledged in the same moment.
--
-- KEYS: unacknowledged messages (hash); when each was claimed (sorted set); dead letters (stream); the queues'
--       doorbells; the queues' lists, all of one priority before those of the next.
-- ARGV: how many messages; beginning of their tags; number of queues; most dead letters to keep; the queues' names;
--       tags that were handled.
-- Answers for each item the number of its list and its text; the number is negative for an item that is no message.
--
-- Each is noted before it is removed: a script that fails half-way has lost nothing. It is allowed to exceed the
-- server's memory limit, since it moves what is there, and only consuming makes room again.
local unacked, index, dead = KEYS[1], KEYS[2], KEYS[3]
local window, prefix, queues, most = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4]

for first = 5 + queues, #ARGV, 1000 do
    local last = math.min(first + 999, #ARGV)
    redis.call('HDEL', unacked, unpack(ARGV, first, last))
    redis.call('ZREM', index, unpack(ARGV, first, last))
end

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local answer, claimed = {}, 0
local last = window > 0 and #KEYS or 0
for position = 4 + queues, last do
    local queue = (position - 4 - queues) % queues + 1
    local name, list = ARGV[4 + queue], KEYS[position]
    while claimed < window do
        local items = redis.call('LRANGE', list, -math.min(window - claimed, 500), -1)
        if #items == 0 then
            break
        end
        local suffix = ',"",' .. cjson.encode(name) .. ']'
        local noted, scores = {}, {}
        for number = #items, 1, -1 do
            local item = items[number]
            if string.byte(item, 1) == 123 and string.byte(item, -1) == 125 then -- { and }
                claimed = claimed + 1
                local tag = prefix .. claimed
                noted[#noted + 1] = tag
                noted[#noted + 1] = '[' .. item .. suffix
                scores[#scores + 1] = now
                scores[#scores + 1] = tag
                answer[#answer + 1] = position - 3 - queues
            else
                redis.call('XADD', dead, 'MAXLEN', '~', most, '*', 'queue', name, 'reason', 'it is no message', 'raw', item)
                answer[#answer + 1] = -(position - 3 - queues)
            end
            answer[#answer + 1] = item
        end
        if #noted > 0 then
            redis.call('HSET', unacked, unpack(noted))
            redis.call('ZADD', index, unpack(scores))
        end
        redis.call('LTRIM', list, 0, -#items - 1)
    end
    if claimed >= window and redis.call('EXISTS', list) == 1 then -- something is left for whoever else waits
        local bell = KEYS[3 + queue]
        if redis.call('EXISTS', bell) == 0 then
            redis.call('LPUSH', bell, 1)
            redis.call('EXPIRE', bell, 60)
        end
        break
    end
end
return answer
