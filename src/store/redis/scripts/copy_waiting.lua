-- Writes a waiting event of a copy if the partition is still closed for that copy. After
-- outbox_counts.lua and outbox_insert.lua. Returns 1 if it is, else 0.
--
-- KEYS: 1 the partition's epoch, 2 the counts, 3 the due operations, 4 the events, 5 the attempts,
-- 6 the places of old events by the time of the change.
local epoch_key, counts_key, due_key = KEYS[1], KEYS[2], KEYS[3]
local events_key, attempts_key, old_key = KEYS[4], KEYS[5], KEYS[6]
local copy_mark, operation = ARGV[1], ARGV[2]
local event, line = ARGV[3], ARGV[4] -- as among those of its operation, and its count
local written_ms, due_ms, attempts = ARGV[5], ARGV[6], ARGV[7] -- times in ms since 1970
if redis.call('GET', epoch_key) ~= copy_mark then return 0 end
local events = insert_event(redis.call('HGET', events_key, operation) or '', event)
-- An interrupted write has copied the event already.
if not events then return 1 end
-- The due time of its operation does not show the time of the change, so the event is old.
local name = operation .. string.sub(event, 1, 17)
redis.call('ZADD', due_key, due_ms, operation)
redis.call('ZADD', old_key, written_ms, name)
redis.call('HSET', attempts_key, name, attempts)
redis.call('HSET', events_key, operation, events)
add_count(counts_key, line)
return 1
