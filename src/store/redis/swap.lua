-- Writes a record if the slot's version is the expected one, in one step with the due index, the tombstone, the event log
-- and the wake-up.
--
-- KEYS: the record, the partition's due index, of a claim the partition's epoch, and the tombstone where the lifetime names
-- one; behind them, where there is an event, the partition's log and the last entry of its chain.
-- ARGV: 1 expected version (8 bytes, empty: nothing may be there), 2 ms to keep, 3 the slot's member in the index,
-- 4 the value, or of a record that falls due only its head, 5 digest, member and event (empty: none), 6 ms
-- until due (absent or empty: never), 7 the payload of a record that falls due, or ms to keep a tombstone, 8 of a claim the
-- epoch that it goes by (absent: none), else the tombstone.
--
-- The value is head (version 8, fence 8, state 1), written (ms, 8), due (ms, 8, 0 never), payload. What falls due is
-- stamped here, by this server's clock; all else comes whole, since asking the time and joining texts are what costs
-- most. The record is read before anything is written, so that a server that is out of memory or a replica still answers
-- duplicates. States 1 (in flight) and 2 (uncertain) are unsettled; 4 is a released marker.
local call = redis.call
local current = call('GET', KEYS[1])
local before = current and string.byte(current, 17) or 0
local state = string.byte(ARGV[4], 17)
local named = #KEYS
if ARGV[5] ~= '' then named = named - 2 end
local grave = state == 1 and named > 3 and KEYS[4] or state ~= 1 and named > 2 and KEYS[3]
local barred = false
-- A tombstone bars a claim over nothing, and over a released marker too: that may have been written over nothing.
if grave and state == 1 and (not current or before == 4) then
  local tombstone = call('GET', grave)
  if tombstone then current, barred = tombstone, true end
end
if current then
  -- An empty value is one that can't be read, and not an empty slot.
  if barred or ARGV[1] == '' or string.sub(current, 1, 8) ~= ARGV[1] then
    if string.sub(current, 1, 17) == string.sub(ARGV[4], 1, 17) then return 1 end
    -- A large result is read by itself: its head alone comes back.
    if before == 3 and #current > 65536 then return { string.sub(current, 1, 17) } end
    -- No rule asks for the age of what is settled.
    if before > 2 or barred then return current end
    local time = call('TIME')
    return { current, time[1], time[2] }
  end
elseif ARGV[1] ~= '' then
  return false
end
-- Claims alone can run what ran before: on a server that forgot, they name an epoch that it hasn't.
if state == 1 and ARGV[8] and call('GET', KEYS[3]) ~= ARGV[8] then return 0 end
local link
-- Before anything is written: a key of another type must not leave a record without its event.
if ARGV[5] ~= '' then link = call('HGET', KEYS[named + 2], 'l') or '' end
local answer = 1
if ARGV[6] and ARGV[6] ~= '' then
  local time = call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local due = now + ARGV[6]
  call('SET', KEYS[1], ARGV[4] .. struct.pack('>I8I8', now, due) .. ARGV[7], 'PX', ARGV[2])
  call('ZADD', KEYS[2], due, ARGV[3])
  answer = now
else
  call('SET', KEYS[1], ARGV[4], 'PX', ARGV[2])
  -- Only what was unsettled can be in the index.
  if current and before <= 2 then call('ZREM', KEYS[2], ARGV[3]) end
  if grave then call('SET', grave, ARGV[8], 'PX', ARGV[7]) end
end
if ARGV[5] ~= '' then
  -- The gateway has made a digest of the event: Lua walks byte by byte through every text that it makes, and its SHA-1 is
  -- slow. Link and digest are 55 bytes, which SHA-1 takes in one block without padding. A hash takes link and id as they
  -- are, and answers a number: joined they would be one more text, and SET answers a table.
  link = redis.sha1hex(link .. string.sub(ARGV[5], 1, 15))
  local id = call('XADD', KEYS[named + 1], '*', link, ARGV[5])
  call('HSET', KEYS[named + 2], 'l', link, 'i', id)
end
-- A user without the right to the channel must not fail a write that is done: waiters then find it by polling.
if state ~= 1 then redis.pcall('PUBLISH', KEYS[1], '') end
return answer
