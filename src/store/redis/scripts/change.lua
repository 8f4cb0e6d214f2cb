-- Writes a record other than a claim, if its slot has the expected version. The same step updates
-- the due index, the tombstone and the event log, and publishes a message that wakes waiters.
--
-- KEYS: 1 the record, 2 the partition's index of unsettled records (of a saga: its index of sagas),
-- then the tombstone (only to write one), then the
-- partition's event log and its chain link (only with an event), then the counts of the outbox
-- (only with events for sinks), then for each of those events: the due operations of its sink, and
-- the events. Before this script, `outbox_count` is set: the number of events for sinks. With some,
-- this script comes after outbox_counts.lua and outbox_insert.lua.
-- Returns 1 (written, or stored already), the server's time in ms (written, falls due), false (the
-- slot is empty and a version was expected), or the record in the way: alone if settled, only its
-- head if large, else with seconds and microseconds of the server's time.
--
-- A stored value is: head (version 8 bytes, fence 8, state 1), written (ms, 8), due (ms, 8, 0
-- never), payload.
-- States: 1 in flight, 2 uncertain, 3 completed, 4 released marker, 6 saga. 1 and 2 are unsettled.
-- A record that falls due gets its times here. All others come with their times, because reading
-- the time and joining texts are the costliest steps.
local record_key, due_key = KEYS[1], KEYS[2]
local expected_version = ARGV[1] -- 8 bytes; empty: the slot must be empty
local keep_ms, member = ARGV[2], ARGV[3] -- member: the slot in the due index
local value = ARGV[4] -- of a record that falls due: only its head
local event = ARGV[5] -- digest (15 bytes), member and event; empty: no event
-- Then, only with events for sinks: their number, the time of the change in ms, the channel of the
-- wake-ups, and for each event: the wake-up, the event as it is kept among those of its operation,
-- and its count.
local outbox_ms, outbox_channel = ARGV[7], ARGV[8]
local optional = outbox_count > 0 and 9 + 3 * outbox_count or 6
local due_in_ms, payload = ARGV[optional], ARGV[optional + 1] -- absent or empty: never falls due
-- Absent: no tombstone.
local tombstone_keep_ms, tombstone = ARGV[optional + 2], ARGV[optional + 3]
local call = redis.call
local outbox_keys = outbox_count > 0 and #KEYS - 2 * outbox_count or #KEYS + 1
local plain_keys = outbox_keys - 1 - (event == '' and 0 or 2)

-- Only the head: Lua reads every byte of a text that it gets.
local current = call('GETRANGE', record_key, '0', '16')
local state = string.byte(current, 17) or 0
if expected_version == '' or string.sub(current, 1, 8) ~= expected_version then
  current = call('GET', record_key)
  -- An empty value is an unreadable record, not an empty slot.
  if current then
    if string.sub(current, 1, 17) == string.sub(value, 1, 17) then return 1 end
    -- The gateway reads a large result or saga in a call of its own.
    if #current > 65536 and (state == 3 or state == 6) then return { string.sub(current, 1, 17) } end
    -- No rule depends on the age of a settled record.
    if state > 2 and state ~= 6 then return current end
    local time = call('TIME')
    return { current, time[1], time[2] }
  end
  if expected_version ~= '' then return false end
end

-- Before the first write: a key of another type must not leave a record without its event.
local link = event ~= '' and (call('HGET', KEYS[plain_keys + 2], 'l') or '')
local outbox_events = outbox_count > 0 and insert_all(outbox_keys, 7, member)
if outbox_events then
  -- These may fail, too. A due operation without an event is removed when it is read.
  for n = 0, outbox_count - 1 do
    -- An earlier event of the operation keeps its due time.
    local outbox_due_key = KEYS[outbox_keys + 1 + 2 * n]
    if outbox_events[n] then call('ZADD', outbox_due_key, 'NX', outbox_ms, member) end
  end
  for n = 0, outbox_count - 1 do
    if outbox_events[n] then add_count(KEYS[outbox_keys], ARGV[11 + 3 * n]) end
  end
end
local answer = 1
if due_in_ms and due_in_ms ~= '' then
  local time = call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  local due_ms = now_ms + due_in_ms
  call('SET', record_key, value .. struct.pack('>I8I8', now_ms, due_ms) .. payload, 'PX', keep_ms)
  call('ZADD', due_key, due_ms, member)
  answer = now_ms
else
  call('SET', record_key, value, 'PX', keep_ms)
  -- Only unsettled records and sagas are in an index. If it is the other one, the entry is removed
  -- when it falls due.
  if current and (state <= 2 or state == 6) then call('ZREM', due_key, member) end
  if tombstone then call('SET', KEYS[3], tombstone, 'PX', tombstone_keep_ms) end
end
if link then
  -- See claim.lua.
  link = redis.sha1hex(link .. string.sub(event, 1, 15))
  local id = call('XADD', KEYS[plain_keys + 1], '*', link, event)
  call('HSET', KEYS[plain_keys + 2], 'l', link, 'i', id)
end
for n = 0, outbox_count - 1 do
  if outbox_events[n] then
    call('HSET', KEYS[outbox_keys + 2 + 2 * n], member, outbox_events[n])
  end
end
-- pcall: a user without the right to the channel must not fail a write that is done. Waiters then
-- find it by polling.
redis.pcall('PUBLISH', record_key, '')
for n = 0, outbox_count - 1 do
  if outbox_events[n] then redis.pcall('PUBLISH', outbox_channel, ARGV[9 + 3 * n]) end
end
return answer
