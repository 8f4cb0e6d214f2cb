-- Removes old entries of a partition's event log, except those that a reader has not read yet.
-- Returns the number of removed entries, and the names of the readers that it forgot.
--
-- KEYS: 1 the event log, 2 its readers, 3 the last entry that was trimmed.
-- A reader is stored as "ms-seq ms": the last entry that it read, and the time of its last report.
local events_key, readers_key, trimmed_key = KEYS[1], KEYS[2], KEYS[3]
local keep_ms = ARGV[1] -- of entries, and of readers without a report
local count_max = ARGV[2]

local time = redis.call('TIME')
local since_ms = time[1] * 1000 + math.floor(time[2] / 1000) - keep_ms
local forgotten, last_ms, last_seq = {}, since_ms - 1, math.huge
local readers = redis.call('HGETALL', readers_key)
for n = 1, #readers, 2 do
  local ms, seq, reported_ms = string.match(readers[n + 1], '^(%d+)-(%d+) (%d+)$')
  ms, seq = tonumber(ms), tonumber(seq)
  if not reported_ms or tonumber(reported_ms) < since_ms then
    redis.call('HDEL', readers_key, readers[n])
    forgotten[#forgotten + 1] = readers[n]
  elseif ms < last_ms or ms == last_ms and seq < last_seq then
    last_ms, last_seq = ms, seq
  end
end
if last_ms < 0 then return { 0, forgotten } end
local last_id = string.format('%.0f', last_ms)
if last_seq ~= math.huge then last_id = last_id .. '-' .. string.format('%.0f', last_seq) end
local old = redis.call('XRANGE', events_key, '-', last_id, 'COUNT', count_max)
if #old == 0 then return { 0, forgotten } end
local last = old[#old]
redis.call('HSET', trimmed_key, 'l', last[2][1], 'i', last[1])
-- MAXLEN, because the oldest supported servers lack MINID.
redis.call('XTRIM', events_key, 'MAXLEN', redis.call('XLEN', events_key) - #old)
return { #old, forgotten }
