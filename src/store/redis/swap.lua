-- Writes a record if the slot's version is the expected one, in one step with the due index, the tombstone and the wake-up.
--
-- KEYS: the record, the partition's due index, and the tombstone where the lifetime names one.
-- ARGV: 1 expected version (8 bytes, empty: nothing may be there), 2 the next head, 3 the next payload, 4 ms to keep,
-- 5 ms until due (0: never), 6 the slot's member in the index, 7 the wake channel (empty: nobody waits for this change),
-- 8 ms to keep a tombstone (empty: none is left), 9 its head, 10 its payload.
--
-- The value is head (version 8, fence 8, state 1), written (ms, 8), due (ms, 8, 0 never), payload. The record is read
-- before anything is written, so that a server that is out of memory or a replica still answers duplicates.
local current = redis.call('GET', KEYS[1])
local barred = false
-- A tombstone bars a claim over nothing, and over a released marker (state 4) too: that may have been written over nothing.
if KEYS[3] and ARGV[8] == '' and (not current or string.byte(current, 17) == 4) then
  local tombstone = redis.call('GET', KEYS[3])
  if tombstone then current, barred = tombstone, true end
end
if current then
  -- An empty value is one that can't be read, and not an empty slot.
  if barred or ARGV[1] == '' or string.sub(current, 1, 8) ~= ARGV[1] then
    if string.sub(current, 1, 17) == ARGV[2] then return 1 end
    local time = redis.call('TIME')
    return current .. struct.pack('>I8', time[1] * 1000 + math.floor(time[2] / 1000))
  end
elseif ARGV[1] ~= '' then
  return false
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local after, due = tonumber(ARGV[5]), 0
if after > 0 then due = now + after end
redis.call('SET', KEYS[1], ARGV[2] .. struct.pack('>I8I8', now, due) .. ARGV[3], 'PX', ARGV[4])
if due > 0 then
  redis.call('ZADD', KEYS[2], due, ARGV[6])
elseif current and (string.byte(current, 17) or 0) <= 2 then
  -- States 1 and 2 are unsettled: only those can be in the index.
  redis.call('ZREM', KEYS[2], ARGV[6])
end
if ARGV[8] ~= '' then
  redis.call('SET', KEYS[3], ARGV[9] .. struct.pack('>I8I8', now, 0) .. ARGV[10], 'PX', ARGV[8])
end
if ARGV[7] ~= '' then redis.call('PUBLISH', ARGV[7], '') end
return 1
