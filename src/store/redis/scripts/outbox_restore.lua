-- Writes events again that the server may have lost, without their record. After outbox_counts.lua
-- and outbox_insert.lua.
--
-- KEYS: 1 the counts, then for each event: the due operations of its sink, and the events.
-- ARGV: as those of change.lua, from which this script takes the operation and the events.
-- Returns 1.
local operation, outbox_ms, outbox_channel = ARGV[3], ARGV[10], ARGV[11]
local call = redis.call
local events = insert_all(1, operation)

for n = 0, (#KEYS - 1) / 2 - 1 do
  -- An event that waits already stays as it is.
  if events[n] then
    -- An earlier event of the operation keeps its due time.
    call('ZADD', KEYS[2 + 2 * n], 'NX', outbox_ms, operation)
    call('HSET', KEYS[3 + 2 * n], operation, events[n])
    add_count(KEYS[1], ARGV[14 + 3 * n])
    -- See change.lua.
    redis.pcall('PUBLISH', outbox_channel, ARGV[12 + 3 * n])
  end
end
return 1
