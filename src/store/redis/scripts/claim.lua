-- Writes a claim (a record that is in flight) if its slot has the expected version and no tombstone
-- bars it, and if the partition has the expected epoch. The same step updates the due index and the
-- event log.
--
-- KEYS: 1 the record, 2 the partition's due index, 3 the partition's epoch, then the tombstone
-- (only if the lifetime keeps one), then the partition's event log and its chain link (only with an
-- event).
-- Returns the server's time in ms (written), 1 (this claim is stored already), 0 (other epoch),
-- false (the slot is empty and a version was expected), or the record in the way: alone if settled,
-- only its head if large, else with seconds and microseconds of the server's time.
--
-- A stored value is: head (version 8 bytes, fence 8, state 1), written (ms, 8), due (ms, 8, 0
-- never), payload.
-- States: 1 in flight, 2 uncertain, 3 completed, 4 released marker, 6 saga. 1 and 2 are unsettled.
-- The record is read before anything is written, so that a replica, or a server that is out of
-- memory, still answers duplicates.
local record_key, due_key, epoch_key = KEYS[1], KEYS[2], KEYS[3]
local expected_version = ARGV[1] -- 8 bytes; empty: the slot must be empty
local keep_ms, member = ARGV[2], ARGV[3] -- member: the slot in the due index
local head, payload = ARGV[4], ARGV[7]
local event = ARGV[5] -- digest (15 bytes), member and event; empty: no event
local due_in_ms = ARGV[6]
local expected_epoch = ARGV[8] -- empty: any
local call = redis.call
local plain_keys = event == '' and #KEYS or #KEYS - 2

local current = call('GET', record_key)
local state = current and string.byte(current, 17) or 0
-- A tombstone bars a claim on an empty slot, and on a released marker too: the marker may have been
-- written to an empty slot.
local tombstone
if plain_keys > 3 and (not current or state == 4) then tombstone = call('GET', KEYS[4]) end
local conflict = tombstone or current
-- An empty value is an unreadable record, not an empty slot.
if
  tombstone
  or current and (expected_version == '' or string.sub(current, 1, 8) ~= expected_version)
then
  if string.sub(conflict, 1, 17) == head then return 1 end
  -- The gateway reads a large result or saga in a call of its own.
  if #conflict > 65536 and (state == 3 or state == 6) then return { string.sub(conflict, 1, 17) } end
  -- No rule depends on the age of a settled record.
  if tombstone or state > 2 and state ~= 6 then return conflict end
  local time = call('TIME')
  return { conflict, time[1], time[2] }
end
if not current and expected_version ~= '' then return false end
-- Only claims can run an operation again. A server that lost its records lacks the epoch.
if expected_epoch ~= '' and call('GET', epoch_key) ~= expected_epoch then return 0 end

-- Before the first write: a key of another type must not leave a record without its event.
local link = event ~= '' and (call('HGET', KEYS[plain_keys + 2], 'l') or '')
local time = call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local due_ms = now_ms + due_in_ms
call('SET', record_key, head .. struct.pack('>I8I8', now_ms, due_ms) .. payload, 'PX', keep_ms)
call('ZADD', due_key, due_ms, member)
if link then
  -- SHA-1 of link and digest: 55 bytes, which fit into one block with the padding. The gateway
  -- makes the digest of the event, because Lua hashes slowly and walks through every text that it
  -- makes. Link and id are two fields of a hash, because joining them would make another text.
  link = redis.sha1hex(link .. string.sub(event, 1, 15))
  local id = call('XADD', KEYS[plain_keys + 1], '*', link, event)
  call('HSET', KEYS[plain_keys + 2], 'l', link, 'i', id)
end
return now_ms
