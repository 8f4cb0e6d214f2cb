-- Replaces the content of a waiting event. After outbox_counts.lua and outbox_take.lua, which has
-- the keys and the first arguments.
--
-- ARGV: 6 the content.
-- Returns 1 (replaced), or 0 (another relay owns the partition, or the event does not wait in
-- this round).
if call('GET', owner_key) ~= fence then return 0 end
local events = call('HGET', events_key, operation)
local at, last = find(events)
if not at then return 0 end
local content = ARGV[6]
-- The head of an event takes 33 bytes: order, length, time of the change and round.
local event = string.sub(events, at, at + 16)
  .. struct.pack('>I4', 12 + #content)
  .. string.sub(events, at + 21, at + 32)
  .. content
call('HSET', events_key, operation,
  string.sub(events, 1, at - 1) .. event .. string.sub(events, last + 1))
local grown = #content - (last - at - 32)
add_count(counts_key, string.format('0,0,0,%.0f ', grown) .. sink .. '\n')
return 1
