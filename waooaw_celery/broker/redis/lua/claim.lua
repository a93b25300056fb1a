#!lua flags=allow-oom
-- Claim messages in the order of their queues' lists.
--
-- Includes groups.lua and claim_begin.lua, which has the KEYS, the ARGV and the reply.
-- include
local last, is_full = window > 0 and #KEYS or 0, false
local step = math.max(window, 4)
for position = 4 + queues, last do
    local queue = (position - 4 - queues) % queues + 1
    local name, list = ARGV[10 + queue], KEYS[position]
    while not is_full and (singles < window or rooms > 0) do
        -- A batch may have room for hundreds, and the next message may be for another handler: read more with success.
        local items = redis.call('LRANGE', list, -math.min(window - singles + rooms, step), -1)
        step = math.min(step * 4, 500)
        if #items == 0 then
            break
        end
        local suffix = ',"",' .. cjson.encode(name) .. ']'
        local entries, scores, taken = {}, {}, 0
        for number = #items, 1, -1 do
            local item = items[number]
            local is_whole = is_message(item)
            local batch = is_whole and batch_of(item)
            if is_whole and ((batch and batch[1] < 1) or (not batch and singles >= window)) then
                is_full = true -- a later message must not overtake this one
                break
            end
            taken = taken + 1
            if is_whole then
                claimed = claimed + 1
                if batch then
                    batch[1], rooms = batch[1] - 1, rooms - 1
                else
                    singles = singles + 1
                end
                local tag = prefix .. claimed
                entries[#entries + 1] = tag
                entries[#entries + 1] = '[' .. item .. suffix
                scores[#scores + 1] = now
                scores[#scores + 1] = tag
                reply[#reply + 1] = position - 3 - queues
                reply[#reply + 1] = not batch and deliver(item) or 0
            else
                bury(name, item)
                reply[#reply + 1] = -(position - 3 - queues)
                reply[#reply + 1] = 0
            end
            reply[#reply + 1] = item
        end
        if #entries > 0 then
            redis.call('HSET', unacked, unpack(entries))
            redis.call('ZADD', index, unpack(scores))
        end
        redis.call('LTRIM', list, 0, -taken - 1)
    end
    is_full = is_full or (singles >= window and rooms == 0)
    if is_full and redis.call('EXISTS', list) == 1 then -- ring again for the messages that are left
        local bell = KEYS[3 + queue]
        if redis.call('EXISTS', bell) == 0 then
            redis.call('LPUSH', bell, 1)
            redis.call('EXPIRE', bell, 60)
        end
        break
    end
end
return reply
