#!lua flags=allow-oom
-- Take the messages of one sender out of a queue: move them to the unacknowledged ones, as a claim does.
--
-- KEYS: the unacknowledged messages (hash); the times of their claims (sorted set); the queue's list, or one of the
--       lists into which its messages are grouped; the queue's doorbell.
-- ARGV: the position of the first item to examine, from the end where items are added; how many to examine; the
--       prefix of the tags; the queue's name; the sender.
-- Returns how many items were examined, and the text of each message that was taken.
--
-- Each message is recorded before it is removed, so a script that fails half-way loses nothing. An item that is to
-- be removed is first replaced by a text that no message has, because a list removes items by their text only.
--
-- Includes groups.lua.
-- include
local unacked, index, list = KEYS[1], KEYS[2], KEYS[3]
local first, count, prefix = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local suffix = ',"",' .. cjson.encode(ARGV[4]) .. ']'
local base = string.sub(KEYS[4], 1, -5)

local function is_of_sender(item)
    if not string.find(item, ARGV[5], 1, true) then -- spares the decoding
        return false
    end
    local read, message = pcall(cjson.decode, item)
    local headers = read and type(message) == 'table' and message['headers']
    local envelope = type(headers) == 'table' and headers['waooaw']
    return type(envelope) == 'table' and envelope['from'] == ARGV[5]
end

if redis.call('HEXISTS', unacked, prefix .. '1') == 1 then
    -- The client repeats a call whose answer was lost. What the first call took comes back when its lease ends.
    return redis.error_reply('ERR the messages were taken, and the answer was lost: repeat the command')
end
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local items = redis.call('LRANGE', list, first, first + count - 1)
local reply = { #items }
for number = 1, #items do
    local _, _, _, key, item = read_entry(items[number])
    item = item or items[number]
    if is_of_sender(item) then
        reply[#reply + 1] = item
        local tag = prefix .. (#reply - 1)
        redis.call('HSET', unacked, tag, '[' .. item .. suffix)
        redis.call('ZADD', index, now, tag)
        redis.call('LSET', list, first + number - 1, prefix)
        if key and key ~= '' and string.sub(list, 1, #base + 8) == base .. 'resumed:' then
            local found = holders(base, unacked, key, now)
            replace_holder(found, '+')
            resume(base, key, found)
            set_holders(base, key, found)
        end
    end
end
if #reply > 1 then
    redis.call('LREM', list, 0, prefix)
    if redis.call('EXISTS', list) == 0 then
        redis.call('SREM', base .. 'sublists', list)
    end
end
return reply
