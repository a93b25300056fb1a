-- Decides whether an agent may send, by all its rules at once, and counts the messages if they pass.
-- The algorithm is described in algorithm.py, which implements the same one in memory.
--
-- KEYS[1]   hash with the quota set at run time: the rules of each scope, and "text" if a quota is set
-- KEYS[s+1] the counter of scope s, a string. The first scope is that of all messages and has an empty name. The name
--           of any other scope is what its key has after the first scope's key.
-- ARGV[1]   "charge", "check" (count nothing) or "status" (count nothing, return the status of each rule)
-- ARGV[2]   the time in microseconds, or "" for the server's clock
-- ARGV[3]   the share of the limits reserved for URGENT messages, in thousandths
-- ARGV[s+3] the number of messages in scope s, the number of those that are not URGENT, each followed by a space, and
--           the rules that apply if no quota is set at run time
--
-- A rule takes 12 bytes: limit, microseconds in a step, burst (0: none).
-- A counter starts with two doubles: the time of its last count, and by how much the clock was set back. For each rule
-- follow the microseconds in a step, the group size, the messages in the newest group, the level of the token bucket
-- in whole messages and the rest of it, the number of slots, and the slots: two bytes each, the step modulo 65536. No
-- slot is older than two windows when it is read. The rest of the level is in parts: a window's microseconds of them
-- make one message, and each microsecond adds as many as the limit.
--
-- Returns {} if the messages pass, or {wait in microseconds or -1 for never, scope, limit, step, burst} of the rule
-- with the longest wait; for "status" {scope, limit, step, burst, used, level, wait} of each rule.

local STEPS, SLOT_RANGE, NEVER = 25000, 65536, 2 ^ 53
local HEADER, WINDOW, FIXED_ARGS = '>dd', '>I4I4I4I4I6H', 3
local floor, ceil, min, max, byte, char = math.floor, math.ceil, math.min, math.max, string.byte, string.char
local pack, unpack_struct = struct.pack, struct.unpack

-- Returns floor(a * b / divisor) and the remainder, exactly, for a and divisor up to 2^45 and b up to 2^30. A double
-- does not hold every such product exactly: a large one is computed digit by digit of b, to the base 128.
local function multiply_and_divide(a, b, divisor)
    local product = a * b
    if product < 2 ^ 52 then
        local quotient = floor(product / divisor)
        return quotient, product - quotient * divisor
    end
    local quotient, rest = 0, 0
    for shift = 28, 0, -7 do
        local part = rest * 128 + a * (floor(b / 2 ^ shift) % 128)
        local digit = floor(part / divisor)
        quotient, rest = quotient * 128 + digit, part - digit * divisor
    end
    return quotient, rest
end

local function age(slots, number, step)
    local high, low = byte(slots, 2 * number - 1, 2 * number)
    return (step - high * 256 - low) % SLOT_RANGE
end

local function used(window)
    return window.slots == '' and 0 or (#window.slots / 2 - 1) * window.group + window.newest
end

local function slot(step)
    step = step % SLOT_RANGE
    return char(floor(step / 256), step % 256)
end

local function count(window, step, n)
    if window.slots ~= '' and window.newest < window.group then
        local fill = min(window.group - window.newest, n)
        window.slots = window.slots:sub(1, -3) .. slot(step)
        window.newest = window.newest + fill
        n = n - fill
    end
    if n > 0 then
        local groups = ceil(n / window.group)
        window.slots = window.slots .. slot(step):rep(groups)
        window.newest = n - (groups - 1) * window.group
    end
end

local function read_windows(raw)
    local windows, at = {}, 17
    while at <= #raw do
        local step_us, group, newest, level, rest, slots
        step_us, group, newest, level, rest, slots, at = unpack_struct(WINDOW, raw, at)
        windows[step_us] =
            { group = group, newest = newest, level = level, rest = rest, slots = raw:sub(at, at + 2 * slots - 1) }
        at = at + 2 * slots
    end
    return windows
end

local function refill(old, limit, step_us, burst, elapsed)
    local period_us = step_us * STEPS
    if burst == 0 or elapsed >= period_us then -- the burst is never larger than the limit
        return burst, 0
    end
    local level, rest = multiply_and_divide(elapsed, limit, period_us)
    level, rest = old.level + level, old.rest + rest
    if rest >= period_us then
        level, rest = level + 1, rest - period_us
    end
    if level >= burst then
        return burst, 0
    end
    return level, rest
end

local function window_of(old, limit, step_us, burst, counted_at, now)
    local group = ceil(limit / 100)
    if not old then
        return { slots = '', group = group, newest = 0, level = burst, rest = 0 }
    end
    local step, last_step = floor(now / step_us), floor(counted_at / step_us)
    local level, rest = refill(old, limit, step_us, burst, now - counted_at)
    local first, slots = 1, #old.slots / 2
    if step - last_step > STEPS then
        first = slots + 1
    end
    while first <= slots and age(old.slots, first, step) > STEPS do
        first = first + 1
    end
    if first > slots then
        return { slots = '', group = group, newest = 0, level = level, rest = rest }
    end
    local left = old.slots:sub(2 * first - 1)
    if group <= old.group then
        return { slots = left, group = old.group, newest = old.newest, level = level, rest = rest }
    end
    local fresh = { slots = '', group = group, newest = 0, level = level, rest = rest }
    for number = first, slots do
        count(fresh, step - age(old.slots, number, step), number == slots and old.newest or old.group)
    end
    return fresh
end

local function wait_for(window, n, limit, reserved, rate, step_us, burst, now)
    if n > limit or (burst > 0 and n > burst - reserved) then
        return NEVER
    end
    local step, wait = floor(now / step_us), 0
    local excess = used(window) + n - limit
    if excess > 0 then
        wait = (step - age(window.slots, ceil(excess / window.group), step) + STEPS + 1) * step_us - now
    end
    if burst > 0 then
        local missing = n + reserved - window.level
        if missing > 0 then
            local refill_us, parts = multiply_and_divide(step_us * STEPS, missing, rate)
            wait = max(wait, refill_us + ceil((parts - window.rest) / rate))
        end
    end
    return wait
end

local mode, now, reserve = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
end
local scopes = #ARGV - FIXED_ARGS

-- The rules of each scope, 1,000 scopes per command: Lua's unpack returns at most about 8,000 values.
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
        local field = 2 * (scope - begin + 1)
        if set[1] then
            rules[scope] = set[field] or set[field + 1] or ''
        else
            rules[scope] = ARGV[FIXED_ARGS + scope]:match('^%d+ %d+ (.*)$')
        end
    end
end

local worst, reply, counters = 0, {}, {}
for scope = 1, scopes do
    if rules[scope] ~= '' then
        local n, non_urgent = ARGV[FIXED_ARGS + scope]:match('^(%d+) (%d+) ')
        n, non_urgent = tonumber(n), tonumber(non_urgent)
        local raw = redis.call('GET', KEYS[scope + 1])
        local scope_now, counted_at, skew, old = now, now, 0, {}
        if raw then
            counted_at, skew = unpack_struct(HEADER, raw)
            old = read_windows(raw)
            scope_now = now + skew
            if scope_now < counted_at then
                skew = skew + counted_at - scope_now
                scope_now = counted_at
                -- Stored at once: while all messages are refused nothing else is stored, and the time must go on.
                redis.call('SETRANGE', KEYS[scope + 1], 8, pack('>d', skew))
            end
        end
        local counter = { scope = scope, n = n, now = scope_now, skew = skew, windows = {}, longest = 0 }
        counters[#counters + 1] = counter
        local at = 1
        while at <= #rules[scope] do
            local limit, step_us, burst
            limit, step_us, burst, at = unpack_struct('>I4I4I4', rules[scope], at)
            local window = window_of(old[step_us], limit, step_us, burst, counted_at, scope_now)
            window.step_us, window.burst = step_us, burst
            counter.windows[#counter.windows + 1] = window
            counter.longest = max(counter.longest, step_us)
            local wait = wait_for(window, n, limit, 0, limit, step_us, burst, scope_now)
            if non_urgent > 0 and reserve > 0 then
                local shared_limit = limit - min(floor(limit * reserve / 1000), limit - 1)
                local reserved = min(floor(burst * reserve / 1000), max(burst - 1, 0))
                wait = max(wait, wait_for(window, non_urgent, shared_limit, reserved, limit, step_us, burst, scope_now))
            end
            if mode == 'status' then
                local reply_wait = wait == NEVER and -1 or wait
                reply[#reply + 1] = { scope, limit, step_us, burst, used(window), window.level, reply_wait }
            elseif wait > worst then
                worst = wait
                reply = { wait == NEVER and -1 or wait, scope, limit, step_us, burst }
            end
        end
    end
end
if mode ~= 'charge' or worst > 0 then
    return reply
end

for _, counter in ipairs(counters) do
    local parts = { pack(HEADER, counter.now, counter.skew) }
    for _, window in ipairs(counter.windows) do
        count(window, floor(counter.now / window.step_us), counter.n)
        local level = window.burst > 0 and window.level - counter.n or 0
        local fields = { window.step_us, window.group, window.newest, level, window.rest, #window.slots / 2 }
        parts[#parts + 1] = pack(WINDOW, unpack(fields)) .. window.slots
    end
    -- After the longest window all counts are zero and every bucket is full.
    local ttl = ceil(counter.longest * (STEPS + 1) / 1000)
    redis.call('SET', KEYS[counter.scope + 1], table.concat(parts), 'PX', ttl)
end
return {}
