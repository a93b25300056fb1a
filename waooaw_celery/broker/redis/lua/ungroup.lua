#!lua flags=allow-oom
-- Put grouped messages back into their queue's lists, for consumers that do not group them.
--
-- KEYS: the queue's doorbell; its lists, that of the most urgent priority first.
-- ARGV: the maximum of messages to move.
-- Returns how many were moved. The newest are moved first, each in front of those before it: what is left after the
-- maximum is older, and the next call puts it in front of them.
--
-- Includes groups.lua.
-- include
local base, left = string.sub(KEYS[1], 1, -5), tonumber(ARGV[1])
local moved = 0
local lists = redis.call('SMEMBERS', base .. 'sublists')
-- The messages of flows come last, and those that were resumed first: each is put before what is there already.
for _, kind in ipairs({ 'flow:', 'group:', 'resumed:' }) do
    local prefix = base .. kind
    for _, list in ipairs(lists) do
        while moved < left and string.sub(list, 1, #prefix) == prefix do
            local entry = redis.call('LINDEX', list, 0)
            if not entry then
                redis.call('SREM', base .. 'sublists', list)
                break
            end
            local step, _, _, key, message = read_entry(entry)
            redis.call('RPUSH', KEYS[2 + step], message)
            redis.call('LPOP', list)
            if kind == 'resumed:' and key ~= '' then
                local found = {}
                for token in string.gmatch(redis.call('HGET', base .. 'busy', key) or '', '%S+') do
                    found[#found + 1] = token
                end
                replace_holder(found, '+')
                set_holders(base, key, found)
            end
            moved = moved + 1
        end
    end
end
if moved > 0 then
    ring(base)
end
return moved
