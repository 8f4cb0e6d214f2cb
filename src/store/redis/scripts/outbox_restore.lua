-- Writes events again that the server may have lost, without their record. After outbox_counts.lua
-- and outbox_insert.lua.
--
-- KEYS: 1 the counts, then for each event: the due operations of its sink, and the events.
-- ARGV: 1 the operation, then those of the events as for change.lua.
-- Returns 1.
local operation, outbox_ms, outbox_channel = ARGV[1], ARGV[3], ARGV[4]
local call = redis.call
local events = insert_all(1, 3, operation)

for n = 0, ARGV[2] - 1 do
  -- An event that waits already stays as it is.
  if events[n] then
    -- An earlier event of the operation keeps its due time.
    call('ZADD', KEYS[2 + 2 * n], 'NX', outbox_ms, operation)
    call('HSET', KEYS[3 + 2 * n], operation, events[n])
    add_count(KEYS[1], ARGV[7 + 3 * n])
    -- See change.lua.
    redis.pcall('PUBLISH', outbox_channel, ARGV[5 + 3 * n])
  end
end
return 1
