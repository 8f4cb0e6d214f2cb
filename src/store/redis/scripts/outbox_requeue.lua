-- Makes a dead letter a waiting event again. After outbox_counts.lua and
-- outbox_insert.lua.
--
-- KEYS: 1 the dead letters, 2 their ids by the time of the burial, 3 the counts, 4 the due
-- operations, 5 the events, 6 the attempts, 7 the places of old events by the time of the change.
-- ARGV: 1 the id, 2 the sink, 3 the channel of the wake-ups, 4 the wake-up, 5 the round that the
-- dead letter has (4 bytes), 6 its next one.
-- Returns 1, or 0 (there is no such dead letter in that round).
local dead_key, dead_at_key, counts_key, due_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local events_key, attempts_key, old_key = KEYS[5], KEYS[6], KEYS[7]
local id, sink = ARGV[1], ARGV[2]
local call = redis.call

local letter = call('HGET', dead_key, id)
if not letter then return 0 end
-- See outbox_bury.lua for the form of a dead letter.
local kind, length = string.byte(letter), struct.unpack('>I4', letter, 48)
local operation, name = string.sub(letter, 10, 30), string.sub(letter, 10, 47)
if string.sub(letter, 60, 63) ~= ARGV[5] then return 0 end
local written_ms = struct.unpack('>I8', letter, 52)
local event = string.sub(letter, 31, 59)
  .. ARGV[6]
  .. string.sub(letter, 64, 51 + length)
-- Nothing, if the event was written again after a loss.
local events = insert_event(call('HGET', events_key, operation) or '', event)
local time = call('TIME')
local line = kind == 0 and '%d,-1,0,%.0f ' or '%d,0,-1,%.0f '
line = string.format(line, events and 1 or 0, events and 0 or 12 - length) .. sink .. '\n'

if events then
  -- An earlier event of the operation keeps its due time.
  call('ZADD', due_key, 'NX', time[1] * 1000 + math.floor(time[2] / 1000), operation)
  call('ZADD', old_key, written_ms, name)
  call('HSET', attempts_key, name, string.rep('\0', 12))
  call('HSET', events_key, operation, events)
end
add_count(counts_key, line)
call('HDEL', dead_key, id)
call('ZREM', dead_at_key, id)
-- See change.lua.
redis.pcall('PUBLISH', ARGV[3], ARGV[4])
return 1
