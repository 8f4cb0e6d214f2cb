-- Takes away old entries of a partition's event log, though none that a reader has still to read. Returns how many, and the
-- readers that it forgot.
--
-- KEYS: the log, its readers, the last entry that was trimmed. ARGV: 1 ms that entries are kept, and that a reader may be
-- silent, 2 how many entries at most.
-- A reader is kept as "ms-seq heard".
local time = redis.call('TIME')
local since = time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[1]
local forgotten, slow_ms, slow_seq = {}, since - 1, math.huge
local readers = redis.call('HGETALL', KEYS[2])
for n = 1, #readers, 2 do
  local ms, seq, heard = string.match(readers[n + 1], '^(%d+)-(%d+) (%d+)$')
  ms, seq = tonumber(ms), tonumber(seq)
  if not heard or tonumber(heard) < since then
    redis.call('HDEL', KEYS[2], readers[n])
    forgotten[#forgotten + 1] = readers[n]
  elseif ms < slow_ms or ms == slow_ms and seq < slow_seq then
    slow_ms, slow_seq = ms, seq
  end
end
if slow_ms < 0 then return { 0, forgotten } end
local to = string.format('%.0f', slow_ms)
if slow_seq ~= math.huge then to = to .. '-' .. string.format('%.0f', slow_seq) end
local old = redis.call('XRANGE', KEYS[1], '-', to, 'COUNT', ARGV[2])
if #old == 0 then return { 0, forgotten } end
local last = old[#old]
redis.call('HSET', KEYS[3], 'l', last[2][1], 'i', last[1])
-- MINID is younger than the oldest servers.
redis.call('XTRIM', KEYS[1], 'MAXLEN', redis.call('XLEN', KEYS[1]) - #old)
return { #old, forgotten }
