-- Decides whether an agent may send, by all its rules at once, and counts the messages when it may.
-- What is worked out here, and why, is told in meter.py, which does the same in memory.
--
-- KEYS[1]   hash with the quota that was set at run time: the rules of each scope, and "text" when there is one
-- KEYS[s+1] the counter of scope s: a string. The first scope is that of all messages, with an empty name, and the
--           name of each other one is what its key has behind the key of the first.
-- ARGV[1]   "charge", "check" (count nothing) or "status" (count nothing, and tell how things stand)
-- ARGV[2]   the time in microseconds, or "" for the server's
-- ARGV[3]   the share of the limits that is kept for urgent messages, in thousandths
-- ARGV[s+3] how many messages there are in scope s, how many of them are not urgent, each with a space behind it; and
--           the rules that hold unless a quota was set.
--
-- Rules are 12 bytes each: limit, microseconds in a step, burst (0: none).
-- A counter is two doubles, when it was written and how far the clock was set back, and for each rule the
-- microseconds in a step, the group, how many are in the newest group, the level of the bucket, the number of slots,
-- and the slots: two bytes each, the step modulo 65536. None is older than two windows when it is read.
--
-- Answers {} when they may be sent, or {wait in microseconds or -1 for never, scope, limit, step, burst} of the
-- worst rule; for "status" {scope, limit, step, burst, used, level, wait} of each rule.

local STEPS, SLOT_RANGE, NEVER = 25000, 65536, 2 ^ 53
local HEAD, FIRST = '>dd', 3
local floor, ceil, min, max, byte, char = math.floor, math.ceil, math.min, math.max, string.byte, string.char
local pack, unpack_bytes = struct.pack, struct.unpack

local function age(slots, number, step)
    local high, low = byte(slots, 2 * number - 1, 2 * number)
    return (step - high * 256 - low) % SLOT_RANGE
end

local function used(window)
    return window.slots == '' and 0 or (#window.slots / 2 - 1) * window.group + window.last
end

local function slot(step)
    step = step % SLOT_RANGE
    return char(floor(step / 256), step % 256)
end

local function count(window, step, n)
    if window.slots ~= '' and window.last < window.group then
        local fill = min(window.group - window.last, n)
        window.slots = window.slots:sub(1, -3) .. slot(step)
        window.last = window.last + fill
        n = n - fill
    end
    if n > 0 then
        local groups = ceil(n / window.group)
        window.slots = window.slots .. slot(step):rep(groups)
        window.last = n - (groups - 1) * window.group
    end
end

local function read_windows(raw)
    local windows, at = {}, 17
    while at <= #raw do
        local tick, group, last, level, slots
        tick, group, last, level, slots, at = unpack_bytes('>I4I4I4dH', raw, at)
        windows[tick] = { group = group, last = last, level = level, slots = raw:sub(at, at + 2 * slots - 1) }
        at = at + 2 * slots
    end
    return windows
end

local function window_of(old, limit, tick, burst, written, now)
    local group, full = ceil(limit / 100), burst * STEPS
    if not old then
        return { slots = '', group = group, last = 0, level = full }
    end
    local step, last_step = floor(now / tick), floor(written / tick)
    local level = min(full, old.level + (step - last_step) * limit)
    local first, slots = 1, #old.slots / 2
    if step - last_step > STEPS then
        first = slots + 1
    end
    while first <= slots and age(old.slots, first, step) > STEPS do
        first = first + 1
    end
    if first > slots then
        return { slots = '', group = group, last = 0, level = level }
    end
    local left = old.slots:sub(2 * first - 1)
    if group <= old.group then
        return { slots = left, group = old.group, last = old.last, level = level }
    end
    local fresh = { slots = '', group = group, last = 0, level = level }
    for number = first, slots do
        count(fresh, step - age(old.slots, number, step), number == slots and old.last or old.group)
    end
    return fresh
end

local function wait_for(window, n, limit, kept, rate, tick, burst, now)
    if n > limit or (burst > 0 and n > burst - kept) then
        return NEVER
    end
    local step, wait = floor(now / tick), 0
    local over = used(window) + n - limit
    if over > 0 then
        wait = (step - age(window.slots, ceil(over / window.group), step) + STEPS + 1) * tick - now
    end
    if burst > 0 then
        local lacking = (n + kept) * STEPS - window.level
        if lacking > 0 then
            wait = max(wait, (step + ceil(lacking / rate)) * tick - now)
        end
    end
    return wait
end

local mode, now, reserve = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
end
local scopes = #ARGV - FIRST

-- The rules of each scope; not all scopes in one command, since Lua passes no more than 8,000 arguments.
local rules = {}
for begin = 1, scopes, 1000 do
    local names = { 'text' }
    for scope = begin, min(begin + 999, scopes) do
        local name = KEYS[scope + 1]:sub(#KEYS[2] + 1)
        names[#names + 1] = name
        names[#names + 1] = name:sub(1, 3) == 'to:' and 'to:*' or name
    end
    local set = redis.call('HMGET', KEYS[1], unpack(names))
    for scope = begin, min(begin + 999, scopes) do
        local place = 2 * (scope - begin + 1)
        if set[1] then
            rules[scope] = set[place] or set[place + 1] or ''
        else
            rules[scope] = ARGV[FIRST + scope]:match('^%d+ %d+ (.*)$')
        end
    end
end

local worst, answer, meters = 0, {}, {}
for scope = 1, scopes do
    if rules[scope] ~= '' then
        local n, ordinary = ARGV[FIRST + scope]:match('^(%d+) (%d+) ')
        n, ordinary = tonumber(n), tonumber(ordinary)
        local raw = redis.call('GET', KEYS[scope + 1])
        local here, written, skew, old = now, now, 0, {}
        if raw then
            written, skew = unpack_bytes(HEAD, raw)
            old = read_windows(raw)
            here = now + skew
            if here < written then
                skew = skew + written - here
                here = written
                -- Noted at once: while everything is refused nothing else is written, and time must go on.
                redis.call('SETRANGE', KEYS[scope + 1], 8, pack('>d', skew))
            end
        end
        local meter = { scope = scope, n = n, now = here, skew = skew, windows = {}, longest = 0 }
        meters[#meters + 1] = meter
        local at = 1
        while at <= #rules[scope] do
            local limit, tick, burst
            limit, tick, burst, at = unpack_bytes('>I4I4I4', rules[scope], at)
            local window = window_of(old[tick], limit, tick, burst, written, here)
            window.tick, window.burst = tick, burst
            meter.windows[#meter.windows + 1] = window
            meter.longest = max(meter.longest, tick)
            local wait = wait_for(window, n, limit, 0, limit, tick, burst, here)
            if ordinary > 0 and reserve > 0 then
                local rest = limit - min(floor(limit * reserve / 1000), limit - 1)
                local kept = min(floor(burst * reserve / 1000), max(burst - 1, 0))
                wait = max(wait, wait_for(window, ordinary, rest, kept, limit, tick, burst, here))
            end
            if mode == 'status' then
                local told = wait == NEVER and -1 or wait
                answer[#answer + 1] = { scope, limit, tick, burst, used(window), window.level, told }
            elseif wait > worst then
                worst = wait
                answer = { wait == NEVER and -1 or wait, scope, limit, tick, burst }
            end
        end
    end
end
if mode ~= 'charge' or worst > 0 then
    return answer
end

for _, meter in ipairs(meters) do
    local parts = { pack(HEAD, meter.now, meter.skew) }
    for _, window in ipairs(meter.windows) do
        count(window, floor(meter.now / window.tick), meter.n)
        local level = window.burst > 0 and window.level - meter.n * STEPS or 0
        parts[#parts + 1] =
            pack('>I4I4I4dH', window.tick, window.group, window.last, level, #window.slots / 2) .. window.slots
    end
    -- When the longest window is over, nothing is left to count, and every bucket is full.
    local keep = ceil(meter.longest * (STEPS + 1) / 1000)
    redis.call('SET', KEYS[meter.scope + 1], table.concat(parts), 'PX', keep)
end
return {}
