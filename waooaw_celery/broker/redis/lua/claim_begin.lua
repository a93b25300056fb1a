-- The beginning of a claim: run the commands that acknowledged messages carry, and remove these messages. The rest
-- then claims messages: it moves them from their queues to the unacknowledged ones, and records in their receipts that
-- they are delivered.
--
-- KEYS: the unacknowledged messages (hash); the times of their claims (sorted set); the dead letters (stream); the
--       queues' doorbells; the queues' lists: those of the most urgent priority first, then the next.
-- ARGV: how many messages to claim; the prefix of their tags; the number of queues; the maximum of dead letters; of
--       how many messages to record the delivery; the prefix of the keys of receipts; the seconds for which a receipt
--       is kept; the key of the messages that expire; the time as ISO 8601 in UTC; how messages are grouped, for
--       claim_groups.lua, else empty; the queues' names; the number of handlers of batches, and for each the name of
--       its task and how many messages to claim for it: the first number is that of all other messages; the number of
--       commands, and for each the number of its words and its words; the tags of acknowledged messages.
-- Returns, for each claimed item, the number of its list, 1 if its delivery is recorded or else 0, and its text. The
-- number is negative for an item that is not a message: it is now a dead letter. It is 0 for a command that failed:
-- the text is then the server's error.
--
-- Each message is recorded before it is removed, so a script that fails half-way loses nothing. It may exceed the
-- server's memory limit, because it only moves messages, and consuming is what frees memory.
local unacked, index, dead = KEYS[1], KEYS[2], KEYS[3]
local window, prefix, queues, max_dead = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4]
local deliveries, receipts, keep, expiring, today = tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local reply, claimed, singles, delivered = {}, 0, 0, 0

-- The handlers of batches that still take messages: their room, and how the header of such a message may be written.
local room, rooms = {}, 0
local next_word = 12 + queues
for _ = 1, tonumber(ARGV[11 + queues]) do
    local name, free = ARGV[next_word], tonumber(ARGV[next_word + 1])
    room[#room + 1] = { free, '"task": "' .. name .. '"', '"task":"' .. name .. '"' }
    rooms = rooms + free
    next_word = next_word + 2
end

local commands = tonumber(ARGV[next_word])
next_word = next_word + 1
for _ = 1, commands do
    local words = tonumber(ARGV[next_word])
    -- One that fails, as where a key has another type, must not keep the others and the messages.
    local result = redis.pcall(unpack(ARGV, next_word + 1, next_word + words))
    if type(result) == 'table' and result['err'] then
        for _, part in ipairs({ 0, 0, result['err'] }) do
            reply[#reply + 1] = part
        end
    end
    next_word = next_word + words + 1
end

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000

local is_grouped = redis.call('EXISTS', unacked .. ':groups') == 1
for first = next_word, #ARGV, 1000 do
    local tags = { unpack(ARGV, first, math.min(first + 999, #ARGV)) }
    redis.call('HDEL', unacked, unpack(tags))
    redis.call('ZREM', index, unpack(tags))
    if is_grouped then
        release(unacked, tags, now)
    end
end

-- Whether an item is a message. One that is not becomes a dead letter.
local function is_message(item)
    return string.byte(item, 1) == 123 and string.byte(item, -1) == 125 -- { and }
end

local function bury(name, item)
    redis.call('XADD', dead, 'MAXLEN', '~', max_dead, '*',
        'queue', name, 'reason', 'it is not a message', 'raw', item)
end

local function is_absent(value)
    return value == nil or value == cjson.null or value == false
end

-- Record the delivery of a message whose handler begins at once, and return 1; or return 0 where the worker has to
-- decide more: the message is not due yet, may have expired, be cancelled, have ended or have been delivered before.
local function deliver(item)
    if delivered >= deliveries or #item > 65536 then -- the server does nothing else while it reads an item
        return 0
    end
    local read, message = pcall(cjson.decode, item)
    local headers = read and message['headers']
    if type(headers) ~= 'table' or type(headers['waooaw']) ~= 'table' or type(headers['id']) ~= 'string' then
        return 0
    end
    local info = type(message['properties']) == 'table' and message['properties']['delivery_info']
    if not is_absent(headers['eta']) or not is_absent(headers['x-delivery-count'])
        or type(info) ~= 'table' or not is_absent(info['redelivered']) then
        return 0
    end
    local expires = headers['expires']
    if not is_absent(expires) and (type(expires) ~= 'string' or string.sub(expires, -6) ~= '+00:00'
        or string.sub(expires, 1, 19) <= string.sub(today, 1, 19)) then
        return 0
    end
    local receipt = receipts .. headers['id']
    local known = redis.call('HMGET', receipt, 'from', 'outcome', 'cancel_requested_at')
    if not known[1] or known[2] or known[3] then
        return 0
    end
    redis.call('HSETNX', receipt, 'delivered_at', today)
    redis.call('HINCRBY', receipt, 'attempts', 1)
    redis.call('ZREM', expiring, headers['id'])
    redis.call('EXPIRE', receipt, keep)
    delivered = delivered + 1
    return 1
end

-- The handler of batches that a message is for, or nil. The message may only name its task elsewhere: then it takes
-- the room of another one.
local function batch_of(item)
    for _, handler in ipairs(room) do
        if string.find(item, handler[2], 1, true) or string.find(item, handler[3], 1, true) then
            return handler
        end
    end
    return nil
end
