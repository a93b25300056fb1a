-- Count the messages of one sender that wait in a queue.
--
-- KEYS: the set of the lists into which the queue's messages are grouped; the queue's lists.
-- ARGV: the sender; how many messages to look at.
--
-- Includes groups.lua.
-- include
local sender, left = ARGV[1], tonumber(ARGV[2])
local count, CHUNK = 0, 250

local function scan(list)
    local examined = 0
    while left > 0 do
        local items = redis.call('LRANGE', list, -examined - CHUNK, -examined - 1)
        for _, item in ipairs(items) do
            if sender_of(item) == sender then
                count = count + 1
            end
        end
        examined, left = examined + #items, left - #items
        if #items < CHUNK then
            break
        end
    end
end

for _, list in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    local flow = string.match(list, 'flow:%d+:([^:]*)$')
    if flow == sender then
        count = count + redis.call('LLEN', list)
    elseif not flow or flow == '' then
        scan(list)
    end
end
for number = 2, #KEYS do
    scan(KEYS[number])
end
return count
