#!lua
-- Record messages and put them into their queues: all of them, or none.
--
-- KEYS[1], KEYS[2] the index of the receipts, and that of the messages that may expire: sorted sets
-- KEYS[2r+1], KEYS[2r+2] the list of route r, and the doorbell of its queue
-- ARGV[1] what stands before an id in the key of a receipt
-- ARGV[2] the time before which entries of the indexes are removed
-- ARGV[3] 0 if no message can have been sent before: all ids are new, and this is the first run
-- ARGV[4] MessagePack: the routes, each {sender, recipient, handler, type, priority}; and the messages in the order in
--         which they are consumed, each {route, id, correlation id, time of sending as text, the same as a number, time
--         of expiry or nil, seconds for which the receipt is kept, the message as it travels}. The messages of an event
--         share their text: it travels once, as a third part {the pieces of the text, the places of the values that
--         stand between them}, and each message has its values in place of its text
--
-- Returns the ids of the messages that were sent before. If there is one, nothing was done. An error that begins with
-- PUSHED means that messages are in their queues without a receipt.
local routes, messages, shared = unpack(cmsgpack.unpack(ARGV[4]))

local sent = {}
for _, message in ipairs(ARGV[3] == '0' and {} or messages) do
    local known = redis.call('HMGET', ARGV[1] .. message[2], 'published', 'delivered_at', 'outcome')
    if known[1] or known[2] or known[3] then
        sent[#sent + 1] = message[2]
    end
end
if #sent > 0 then
    return sent
end

if shared then
    local text, places = {}, shared[2]
    for number, piece in ipairs(shared[1]) do
        text[2 * number - 1] = piece
    end
    for _, message in ipairs(messages) do
        for number, place in ipairs(places) do
            text[2 * number] = message[8][place]
        end
        message[8] = table.concat(text)
    end
end

local texts, ids, expiring = {}, {}, {}
for route = 1, #routes do
    texts[route] = {}
end
for _, message in ipairs(messages) do
    local list = texts[message[1]]
    list[#list + 1] = message[8]
    ids[#ids + 1] = message[5]
    ids[#ids + 1] = message[2]
    if message[6] then
        expiring[#expiring + 1] = message[6]
        expiring[#expiring + 1] = message[2]
    end
end

-- LPUSH comes first: a user who may not run it has changed nothing.
local failed
local pushed = 0
for route, list in ipairs(texts) do
    local reply = redis.pcall('LPUSH', KEYS[2 * route + 1], unpack(list))
    if type(reply) == 'table' and reply.err then
        failed = reply
        break
    end
    pushed = route
end

local function record(...)
    if not failed then
        local reply = redis.pcall(...)
        if type(reply) == 'table' and reply.err then
            failed = reply
        end
    end
end

if not failed then
    record('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[2])
    record('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[2])
    record('ZADD', KEYS[1], 'NX', unpack(ids))
    if #expiring > 0 then
        record('ZADD', KEYS[2], unpack(expiring))
    end
    for _, message in ipairs(messages) do
        if failed then
            break
        end
        local key, route = ARGV[1] .. message[2], routes[message[1]]
        record(
            'HSET', key, 'from', route[1], 'to', route[2], 'handler', route[3], 'type', route[4], 'priority', route[5],
            'sent_at', message[4], 'correlation_id', message[3], 'published', '1'
        )
        record('EXPIRE', key, message[7])
    end
end

for route = 1, #routes do
    local bell = KEYS[2 * route + 2]
    if not failed and redis.call('EXISTS', bell) == 0 then
        record('LPUSH', bell, 1)
        record('EXPIRE', bell, 60) -- the queue may have no consumer
    end
end

if failed then
    -- The server's user may not run one of the commands: what was done is undone.
    for route = 1, pushed do
        local reply = redis.pcall('LPOP', KEYS[2 * route + 1], #texts[route])
        if type(reply) == 'table' and reply.err then
            return redis.error_reply('PUSHED ' .. failed.err)
        end
    end
    for _, message in ipairs(messages) do
        redis.pcall('DEL', ARGV[1] .. message[2])
        redis.pcall('ZREM', KEYS[1], message[2])
        redis.pcall('ZREM', KEYS[2], message[2])
    end
    return failed
end
return sent
