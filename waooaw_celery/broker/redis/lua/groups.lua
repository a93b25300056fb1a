-- The groups of a queue: functions for the scripts that include this file.
--
-- A queue whose consumers group its messages has, beside the lists of its priorities, keys that begin with its base,
-- the name of its doorbell without "bell":
--   flow:<priority>:<sender>  a list: the messages of one sender; of all senders where the queue is not fair
--   new:<priority>, old:<priority>, deficit:<priority>  the order of the flows, for claim_groups.lua
--   group:<key>       a list: the messages of one key that wait until an earlier one of the key has ended
--   resumed:<priority>  a list: the messages that are claimed next: their turn has come, or comes again
--   busy              a hash: for each key, who holds a place in it: the tags of running messages, "+" for a resumed
--                     message, and "retry:<id>:<time>" for one whose next attempt is on its way until this time
--   sublists          a set: the keys of all these lists that are not empty
-- And for all queues, beside the unacknowledged messages:
--   <unacked>:groups  a hash: where the message of a tag came from
--   <unacked>:retried a set: tags of messages that are about to be acknowledged because they are tried again
--
-- Each list is consumed from its right end. Its entries are "<priority>:<most>:<policy>:<key>:<message>": how many
-- messages of the key may run at once, and what becomes of a message whose key is busy: w it waits, d it is dropped,
-- c it waits and those before it are cancelled. The three are empty for a message without a key.
local RETRY_SECONDS = 30

local function read_entry(entry)
    return string.match(entry, '^(%d+):(%d*):(%a?):(%x*):(.*)$')
end

-- A header of a message whose value is a text. In its body, a string in a JSON document, quotation marks are escaped.
-- (A pattern is only tried where its beginning was found: to try it everywhere takes many times longer.)
local function header_of(item, name)
    local at = string.find(item, '"' .. name .. '":', 1, true)
    return at and string.match(item, '^": ?"([^"\\]*)"', at + #name + 1)
end

local function sender_of(item)
    local at = string.find(item, '"waooaw":', 1, true)
    return at and string.match(item, '^"waooaw": ?{"from": ?"([^"\\]*)"', at) or header_of(item, 'from') or ''
end

local function push(base, list, entry, command)
    redis.call(command, list, entry)
    redis.call('SADD', base .. 'sublists', list)
end

-- Remove the next entry of a list, and return whether the list is empty now.
local function pop(base, list)
    redis.call('RPOP', list)
    local is_empty = redis.call('EXISTS', list) == 0
    if is_empty then
        redis.call('SREM', base .. 'sublists', list)
    end
    return is_empty
end

local function ring(base)
    if redis.call('EXISTS', base .. 'bell') == 0 then
        redis.call('LPUSH', base .. 'bell', 1)
        redis.call('EXPIRE', base .. 'bell', 60) -- the queue may have no consumer
    end
end

-- Who holds a place in a key. A message that is not unacknowledged any more has lost it.
local function holders(base, unacked, key, now)
    local found = {}
    for token in string.gmatch(redis.call('HGET', base .. 'busy', key) or '', '%S+') do
        local ends = string.match(token, '^retry:%x+:(%d+)$')
        if token == '+' or (ends and tonumber(ends) > now)
            or (not ends and redis.call('HEXISTS', unacked, token) == 1) then
            found[#found + 1] = token
        end
    end
    return found
end

local function set_holders(base, key, found)
    if #found == 0 then
        redis.call('HDEL', base .. 'busy', key)
    else
        redis.call('HSET', base .. 'busy', key, table.concat(found, ' '))
    end
end

-- Remove a holder, or another one in its place, and return whether it was one.
local function replace_holder(found, token, by)
    for position, each in ipairs(found) do
        if each == token then
            if by then
                found[position] = by
            else
                table.remove(found, position)
            end
            return true
        end
    end
    return false
end

-- Let the waiting messages of a key go on, as many as there are places.
local function resume(base, key, found)
    local group = base .. 'group:' .. key
    while true do
        local entry = redis.call('LINDEX', group, -1)
        if not entry then
            break
        end
        local step, most = string.match(entry, '^(%d+):(%d+):')
        if #found >= tonumber(most) then
            break
        end
        pop(base, group)
        push(base, base .. 'resumed:' .. step, entry, 'LPUSH')
        found[#found + 1] = '+'
        ring(base)
    end
end

-- Give up the places of messages that are not unacknowledged any more.
local function release(unacked, tags, now)
    local retried = redis.call('EXISTS', unacked .. ':retried') == 1
    local places = redis.call('HMGET', unacked .. ':groups', unpack(tags))
    redis.call('HDEL', unacked .. ':groups', unpack(tags))
    for number, tag in ipairs(tags) do
        local base, _, _, _, key, id = unpack(places[number] and cmsgpack.unpack(places[number]) or {})
        local is_retried = retried and redis.call('SREM', unacked .. ':retried', tag) == 1
        if base and key ~= '' then
            local found = holders(base, unacked, key, now)
            replace_holder(found, tag)
            local first = is_retried and redis.call('LINDEX', base .. 'group:' .. key, -1)
            -- Nobody overtakes its next attempt, which is on its way, or waits already.
            if is_retried and not (first and header_of(first, 'id') == id) then
                found[#found + 1] = 'retry:' .. redis.sha1hex(id) .. ':' .. math.ceil(now + RETRY_SECONDS)
            end
            resume(base, key, found)
            set_holders(base, key, found)
        end
    end
end

-- Put a message that was claimed back to where it came from, as the next one, and return whether it is in a group.
local function put_back(unacked, tag, message, now)
    local place = redis.call('HGET', unacked .. ':groups', tag)
    if not place then
        return false
    end
    redis.call('HDEL', unacked .. ':groups', tag)
    redis.call('SREM', unacked .. ':retried', tag)
    local base, step, most, policy, key = unpack(cmsgpack.unpack(place))
    if key ~= '' then
        local found = holders(base, unacked, key, now)
        if not replace_holder(found, tag, '+') then
            found[#found + 1] = '+'
        end
        set_holders(base, key, found)
    end
    push(base, base .. 'resumed:' .. step, table.concat({ step, most, policy, key, message }, ':'), 'RPUSH')
    ring(base)
    return true
end
