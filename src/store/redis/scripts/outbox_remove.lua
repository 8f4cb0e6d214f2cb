-- Removes a delivered event. After outbox_counts.lua and outbox_take.lua, which has the keys and
-- arguments.
--
-- Returns 1 (the event does not wait in this round), or 0 (another relay owns the partition).
if call('GET', owner_key) ~= fence then return 0 end
local events = call('HGET', events_key, operation)
local at, last = find(events)
if not at then return 1 end
-- The head of an event takes 33 bytes.
add_count(counts_key, string.format('-1,0,0,-%.0f ', last - at - 32) .. sink .. '\n')
take(events, at, last)
return 1
