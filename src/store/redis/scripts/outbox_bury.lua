-- Makes a waiting event a dead letter. After outbox_counts.lua and outbox_take.lua, which has the
-- first keys and arguments.
--
-- KEYS: 7 the dead letters, 8 their ids by the time of the burial.
-- ARGV: 6 the id, 7 the kind (0 receiver, 1 gateway), 8 the sink and the report, as the letter ends
-- with them.
-- Returns 1 (the event does not wait in this round), or 0 (another relay owns the partition).
--
-- A dead letter is: kind (1 byte), time of the burial (ms, 8), operation (21), order (17), length
-- (4), time of the change (ms, 8), round (4), content, length of the sink (2), sink, report.
local dead_key, dead_at_key = KEYS[7], KEYS[8]
local id, kind, ending = ARGV[6], tonumber(ARGV[7]), ARGV[8]

if call('GET', owner_key) ~= fence then return 0 end
local events = call('HGET', events_key, operation)
local at, last = find(events)
if not at then return 1 end
local now_ms = time_ms()
local lines = (kind == 0 and '-1,1,0,0 ' or '-1,0,1,0 ') .. sink .. '\n'
-- The event was written again after a loss, although it was buried already.
local before = call('HGET', dead_key, id)
if before then
  local form = string.byte(before) == 0 and '0,-1,0,%.0f ' or '0,0,-1,%.0f '
  lines = lines .. string.format(form, 12 - struct.unpack('>I4', before, 48)) .. sink .. '\n'
end
call('ZADD', dead_at_key, now_ms, id)
add_count(counts_key, lines)
call('HSET', dead_key, id,
  struct.pack('>I1I8', kind, now_ms) .. operation .. string.sub(events, at, last) .. ending)
take(events, at, last)
return 1
