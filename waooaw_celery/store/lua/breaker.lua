-- Changes the circuit breaker of an agent. resilience/breaker_rules.py has the same rules and describes the record.
--
-- KEYS[1] hash: the record of each agent's breaker, as JSON
-- ARGV[1] "report", "probe" (take its place), "probed" (it has ended), "open" (by hand) or "close"
-- ARGV[2] the agent
-- ARGV[3] arguments as JSON: the limits (failures, window, open_seconds) and what the operation needs
--
-- Returns the time in seconds, the record as JSON or "" if there is none, and whether the operation had an effect:
-- the place was free; the breaker opened, or was open.

local PARTS = 10
local operation, agent, given = ARGV[1], ARGV[2], cjson.decode(ARGV[3])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000

local text = redis.call('HGET', KEYS[1], agent)
local record = text and cjson.decode(text) or { counts = {} }
if record['until'] and now >= record['until'] then
    record = { counts = {} } -- it was opened by hand, and its time is over
end
local is_closed = not record.opened_at
local done = false

local function report()
    if not is_closed then
        return
    end
    local newest = math.floor(now / (given.window / PARTS))
    local parts = {}
    local function add(part, failures, successes)
        if part > newest - PARTS and part <= newest then
            local known = parts[part] or { 0, 0 }
            parts[part] = { known[1] + failures, known[2] + successes }
        end
    end
    for _, each in ipairs(record.counts) do
        add(each[1], each[2], each[3])
    end
    local new_failures, failures, successes = 0, 0, 0
    for _, each in ipairs(given.counted) do
        add(newest - each[1], each[2], each[3])
        new_failures = new_failures + each[2]
    end
    local counts = {}
    for part, each in pairs(parts) do
        counts[#counts + 1] = { part, each[1], each[2] }
        failures, successes = failures + each[1], successes + each[2]
    end
    if given.failures > 0 and new_failures > 0 and failures >= given.failures and failures >= successes then
        record = { counts = {}, opened_at = now, retry_at = now + given.open_seconds }
        done = true
    else
        record = { counts = counts }
    end
    if failures == 0 then
        record = nil
    end
end

local function probe()
    local is_half_open = not is_closed and record.retry_at and now >= record.retry_at
    if is_half_open and not (record.probe and now < record.probe_until) then
        record.probe, record.probe_until, done = given.request, now + given.lease, true
    end
end

local function probed()
    if record.by or record.probe ~= given.request then
        return
    end
    done = true
    if given.works == true then
        record = nil
        return
    end
    record.probe, record.probe_until = nil, 0
    if given.works == false then
        record.retry_at = now + given.open_seconds
    end
end

if operation == 'report' then
    report()
elseif operation == 'probe' then
    probe()
elseif operation == 'probed' then
    probed()
elseif operation == 'open' then
    record = { counts = {}, opened_at = now, by = given.by, reason = given.reason }
    record['until'] = given.seconds and now + given.seconds or nil
    done = true
elseif operation == 'close' then
    done = not is_closed
    record = nil
end

if record and (record.opened_at or #record.counts > 0) then
    text = cjson.encode(record)
    redis.call('HSET', KEYS[1], agent, text)
else
    text = ''
    redis.call('HDEL', KEYS[1], agent)
end
return { string.format('%.6f', now), text, done and 1 or 0 }
