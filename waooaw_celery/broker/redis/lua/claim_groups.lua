#!lua flags=allow-oom
-- Claim messages of queues whose messages are grouped: by sender, so that none of them waits for the many messages of
-- another one; and by key, so that the messages of a key are handled in order, and only some at once.
--
-- Messages arrive in the queue's lists, from any producer. A claim first sorts them into flows. Then it takes from the
-- flows by deficit round robin with new flows first (RFC 8290, section 4): a flow of weight 2 gets twice as many turns.
-- A message whose key is busy leaves its flow for the group of its key.
--
-- Includes groups.lua and claim_begin.lua, which has the KEYS, the ARGV and the reply.
-- ARGV[10], MessagePack: whether the queues are fair; the weights of senders, 1 if there is none; the names of the
--          tasks whose messages have keys; the keys of messages, by the SHA-1 of their text: "<most>:<policy>:<key>", or
--          "::" for none; whether the lists are those of the least urgent priority first.
-- The reply has further parts. The second part is 2 for a message that was dropped because its key is busy. Where the
-- first is 0: 2 for a message whose key is needed before it and later ones are claimed; 3 for the id of a message that
-- is to be cancelled.
-- include
-- The most messages that are sorted, put into groups, asked for, and looked at, and the bytes of those that are sorted
-- and asked for, about.
local SORTED, PARKED, ASKED, CHECKED = 1000, 500, 250, 20
local SORTED_BYTES, ASKED_BYTES = 4 * 1024 * 1024, 1024 * 1024
local is_fair, weights, keyed, keys, is_reversed = unpack(cmsgpack.unpack(ARGV[10]))
local priorities = (#KEYS - 3 - queues) / math.max(queues, 1)
local texts = {}
for number, name in ipairs(keyed) do
    texts[number] = { '"task": "' .. name .. '"', '"task":"' .. name .. '"' }
end

local function report(first, second, text)
    reply[#reply + 1] = first
    reply[#reply + 1] = second
    reply[#reply + 1] = text
end

local function has_key(item)
    for _, text in ipairs(texts) do
        if string.find(item, text[1], 1, true) or string.find(item, text[2], 1, true) then
            return true
        end
    end
    return false
end

-- Put a message that is tried again where its last attempt was, and return whether it was there.
local function keeps_place(base, step, key, entry, item)
    local at = string.find(item, '"retries":', 1, true)
    local id = at and string.find(item, '^"retries": ?[1-9]', at) and header_of(item, 'id')
    if not id then
        return false
    end
    local found = holders(base, unacked, key, now)
    local prefix = 'retry:' .. redis.sha1hex(id) .. ':'
    for position, token in ipairs(found) do
        if string.sub(token, 1, #prefix) == prefix then
            found[position] = '+'
            set_holders(base, key, found)
            push(base, base .. 'resumed:' .. step, entry, 'RPUSH')
            return true
        end
        local place = redis.call('HGET', unacked .. ':groups', token)
        if place and cmsgpack.unpack(place)[6] == id then -- its last attempt is not acknowledged yet
            push(base, base .. 'group:' .. key, entry, 'RPUSH')
            return true
        end
    end
    return false
end

local function weight_of(flow)
    return weights[flow] or 1
end

-- Begin to take turns with a flow that has messages, if it has none yet.
local function begin_turns(base, step, flow)
    if redis.call('HSETNX', base .. 'deficit:' .. step, flow, weight_of(flow)) == 1 then
        redis.call('RPUSH', base .. 'new:' .. step, flow)
    end
end

local function sort_item(base, step, note, item)
    local entry = step .. ':' .. note .. ':' .. item
    local key = string.match(note, ':(%x*)$')
    if key ~= '' and keeps_place(base, step, key, entry, item) then
        return
    end
    local flow = is_fair and sender_of(item) or ''
    push(base, base .. 'flow:' .. step .. ':' .. flow, entry, 'LPUSH')
    begin_turns(base, step, flow)
end

-- Report the next messages of a list whose keys are needed.
local function ask(list)
    local examined, bytes, chunk = 0, 0, 4
    while examined < ASKED and bytes < ASKED_BYTES do
        local items = redis.call('LRANGE', list, -examined - chunk, -examined - 1)
        for number = #items, 1, -1 do
            if has_key(items[number]) then
                report(0, 2, items[number])
                bytes = bytes + #items[number]
            end
        end
        examined = examined + #items
        if #items < chunk then
            break
        end
        chunk = math.min(chunk * 2, ASKED - examined + 1)
    end
end

-- Move messages from a list to flows, and return whether some must wait for their keys. What is read at once is
-- bounded: messages may be large, and the server does nothing else meanwhile.
local function sort(position, list, name, base, step)
    local left, bytes, chunk = SORTED, 0, 4
    while left > 0 and bytes < SORTED_BYTES do
        local items = redis.call('LRANGE', list, -math.min(chunk, left), -1)
        local sorted, is_asking = 0, false
        for number = #items, 1, -1 do
            local item = items[number]
            local note = '::'
            if not is_message(item) then
                bury(name, item)
                report(-(position - 3 - queues), 0, item)
                note = nil
            elseif has_key(item) then
                note = keys[redis.sha1hex(item)]
                is_asking = not note
            end
            if is_asking then
                break
            end
            if note then
                sort_item(base, step, note, item)
            end
            sorted, bytes = sorted + 1, bytes + #item
        end
        if sorted > 0 then
            redis.call('LTRIM', list, 0, -sorted - 1)
        end
        if is_asking then
            ask(list)
            return true
        end
        if #items < chunk then
            break
        end
        left, chunk = left - #items, math.min(chunk * 4, 250)
    end
    return false
end

-- Whether resumed messages may wait, by their list.
local may_be_resumed = {}

-- Forget a flow without messages: where workers are not fair, it takes no turns.
local function forget_turns(base, step, flow)
    redis.call('HDEL', base .. 'deficit:' .. step, flow)
    redis.call('LREM', base .. 'new:' .. step, 0, flow)
    redis.call('LREM', base .. 'old:' .. step, 0, flow)
end

-- The flow whose turn it is, the list with its place, and its next entry; nil if there is none.
local function next_flow(base, step)
    local new, old, deficits = base .. 'new:' .. step, base .. 'old:' .. step, base .. 'deficit:' .. step
    while true do
        local turns = new
        local flow = redis.call('LINDEX', new, 0)
        if not flow then
            turns, flow = old, redis.call('LINDEX', old, 0)
        end
        if not flow then
            return nil
        end
        local entry = redis.call('LINDEX', base .. 'flow:' .. step .. ':' .. flow, -1)
        local weight = weight_of(flow)
        local deficit = entry and weight ~= 1 and tonumber(redis.call('HGET', deficits, flow) or weight) or 1
        if entry and deficit >= 1 then
            return flow, turns, entry
        end
        redis.call('LPOP', turns)
        if not entry and turns == old then
            redis.call('HDEL', deficits, flow)
        else -- also without messages: otherwise a sender of single ones would be new again, and always come first
            redis.call('RPUSH', old, flow)
            if entry then
                redis.call('HSET', deficits, flow, deficit + weight)
            end
        end
    end
end

-- Count a message of a flow. One of weight 1, as most are, has used up its turn.
local function end_turn(base, step, flow, turns)
    if weight_of(flow) == 1 then
        redis.call('LPOP', turns)
        redis.call('RPUSH', base .. 'old:' .. step, flow)
    else
        redis.call('HINCRBYFLOAT', base .. 'deficit:' .. step, flow, -1)
    end
end

-- The next entry of a priority, the list that it is in, its flow, and the list with the flow's place.
local function next_entry(base, step)
    local resumed = base .. 'resumed:' .. step
    if may_be_resumed[resumed] == nil then
        may_be_resumed[resumed] = redis.call('EXISTS', resumed) == 1
    end
    local entry = may_be_resumed[resumed] and redis.call('LINDEX', resumed, -1)
    if entry then
        return entry, resumed
    end
    if not is_fair then
        local list = base .. 'flow:' .. step .. ':'
        entry = redis.call('LINDEX', list, -1)
        if entry then
            return entry, list, ''
        end -- there may be flows of other workers, which are fair
    end
    local flow, turns, first = next_flow(base, step)
    return first, flow and base .. 'flow:' .. step .. ':' .. flow, flow, turns
end

local parked = 0

-- Take a place in the key of an entry that leaves its list. Returns whether the message is claimed, whether it is
-- dropped, and the key in which it has a place.
local function enter(base, entry, is_resumed, most, policy, key)
    if key == '' then
        return true, false, nil
    end
    local found, group = holders(base, unacked, key, now), base .. 'group:' .. key
    local others = redis.call('LLEN', group)
    if is_resumed then
        replace_holder(found, '+')
        set_holders(base, key, found)
        return true, policy == 'c' and others > 0, found
    end
    if #found < tonumber(most) and others == 0 then
        return true, false, found
    end
    if policy == 'd' then
        return true, true, nil
    end
    push(base, group, entry, 'LPUSH')
    parked = parked + 1
    for _, token in ipairs(policy == 'c' and found or {}) do
        local place = redis.call('HGET', unacked .. ':groups', token)
        if place then
            report(0, 3, cmsgpack.unpack(place)[6])
        end
    end
    resume(base, key, found) -- if its holders were lost, nothing else lets its messages go on
    set_holders(base, key, found)
    may_be_resumed = {}
    return false
end

local is_full = window < 1
local checked = {}
for position = 4 + queues, window > 0 and #KEYS or 0 do
    local number = position - 4 - queues
    local queue = number % queues + 1
    local priority = math.floor(number / queues)
    local step = tostring(is_reversed and priorities - 1 - priority or priority)
    local name, list = ARGV[10 + queue], KEYS[position]
    local base = string.sub(KEYS[3 + queue], 1, -5)
    checked[base] = true
    local suffix = ',"",' .. cjson.encode(name) .. ']'
    local is_asking = sort(position, list, name, base, step)
    while not is_full and (singles < window or rooms > 0) do
        local entry, from, flow, turns = next_entry(base, step)
        if not entry then
            if is_asking or redis.call('EXISTS', list) == 0 then
                break
            end
            is_asking = sort(position, list, name, base, step)
        else
            local _, most, policy, key, item = read_entry(entry)
            local batch = batch_of(item)
            if (batch and batch[1] < 1) or (not batch and singles >= window) or parked > PARKED then
                is_full = true -- a later message must not overtake this one
                break
            end
            local is_claimed, is_dropped, found = enter(base, entry, not flow, most, policy, key)
            if turns and is_claimed then
                end_turn(base, step, flow, turns)
            end
            if is_claimed then
                claimed = claimed + 1
                if batch then
                    batch[1], rooms = batch[1] - 1, rooms - 1
                else
                    singles = singles + 1
                end
                local tag = prefix .. claimed
                redis.call('HSET', unacked, tag, '[' .. item .. suffix)
                redis.call('ZADD', index, now, tag)
                local id = found and header_of(item, 'id') or ''
                local place = { base, step, most, policy, found and key or '', id }
                redis.call('HSET', unacked .. ':groups', tag, cmsgpack.pack(place))
                if found then
                    found[#found + 1] = tag
                    set_holders(base, key, found)
                end
                report(position - 3 - queues, is_dropped and 2 or (batch and 0 or deliver(item)), item)
            end
            local is_empty = pop(base, from) -- now that it is recorded, or waits in its group
            if is_empty and flow and not turns then
                forget_turns(base, step, flow)
            end
        end
    end
    is_full = is_full or (singles >= window and rooms == 0)
    if is_full then
        local rest = { list, base .. 'new:' .. step, base .. 'old:' .. step, base .. 'resumed:' .. step }
        if redis.call('EXISTS', unpack(rest)) > 0 then -- ring again for the messages that are left
            ring(base)
            break
        end
    end
end

if claimed == 0 and window > 0 then -- look whether messages wait for others that were removed by hand
    for base in pairs(checked) do
        for _, list in ipairs(redis.call('SRANDMEMBER', base .. 'sublists', CHECKED)) do
            local key = string.match(list, 'group:(%x+)$')
            if key and list == base .. 'group:' .. key then
                local found = holders(base, unacked, key, now)
                resume(base, key, found)
                set_holders(base, key, found)
            end
        end
    end
end
return reply
