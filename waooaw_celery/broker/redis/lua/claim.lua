#!lua flags=allow-oom
-- Remove acknowledged messages, then claim messages: move them from their queues to the unacknowledged ones.
--
-- KEYS: the unacknowledged messages (hash); the times of their claims (sorted set); the dead letters (stream); the
--       queues' doorbells; the queues' lists: those of the most urgent priority first, then the next.
-- ARGV: how many messages to claim; the prefix of their tags; the number of queues; the maximum of dead letters; the
--       queues' names; the tags of acknowledged messages.
-- Returns, for each claimed item, the number of its list and its text. The number is negative for an item that is
-- not a message: it is now a dead letter.
--
-- Each message is recorded before it is removed, so a script that fails half-way loses nothing. It may exceed the
-- server's memory limit, because it only moves messages, and consuming is what frees memory.
local unacked, index, dead = KEYS[1], KEYS[2], KEYS[3]
local window, prefix, queues, max_dead = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4]

for first = 5 + queues, #ARGV, 1000 do
    local last = math.min(first + 999, #ARGV)
    redis.call('HDEL', unacked, unpack(ARGV, first, last))
    redis.call('ZREM', index, unpack(ARGV, first, last))
end

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local reply, claimed = {}, 0
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
        local entries, scores = {}, {}
        for number = #items, 1, -1 do
            local item = items[number]
            if string.byte(item, 1) == 123 and string.byte(item, -1) == 125 then -- { and }
                claimed = claimed + 1
                local tag = prefix .. claimed
                entries[#entries + 1] = tag
                entries[#entries + 1] = '[' .. item .. suffix
                scores[#scores + 1] = now
                scores[#scores + 1] = tag
                reply[#reply + 1] = position - 3 - queues
            else
                redis.call('XADD', dead, 'MAXLEN', '~', max_dead, '*',
                    'queue', name, 'reason', 'it is not a message', 'raw', item)
                reply[#reply + 1] = -(position - 3 - queues)
            end
            reply[#reply + 1] = item
        end
        if #entries > 0 then
            redis.call('HSET', unacked, unpack(entries))
            redis.call('ZADD', index, unpack(scores))
        end
        redis.call('LTRIM', list, 0, -#items - 1)
    end
    if claimed >= window and redis.call('EXISTS', list) == 1 then -- ring again for the messages that are left
        local bell = KEYS[3 + queue]
        if redis.call('EXISTS', bell) == 0 then
            redis.call('LPUSH', bell, 1)
            redis.call('EXPIRE', bell, 60)
        end
        break
    end
end
return reply
