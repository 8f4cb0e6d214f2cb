-- Stores the attempts of an event. If it is the first of its operation, also stores when its next
-- attempt is due. After outbox_take.lua, which has the keys and the first arguments.
--
-- ARGV: 6 the attempts, 7 the pause in ms.
-- Returns 1 (stored), or 0 (another relay owns the partition, or the event does not wait in
-- this round).
if call('GET', owner_key) ~= fence then return 0 end
local events = call('HGET', events_key, operation)
local at = find(events)
if not at then return 0 end
call('HSET', attempts_key, name, ARGV[6])
call('ZADD', old_key, struct.unpack('>I8', events, at + 21), name)
-- An earlier event of the operation may have been written meanwhile. It is due first.
if at == 1 then call('ZADD', due_key, time_ms() + ARGV[7], operation) end
return 1
