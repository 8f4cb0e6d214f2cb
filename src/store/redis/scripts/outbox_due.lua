-- Reads the operations of a sink in a partition that are due, each with its first event.
--
-- KEYS: 1 the due operations, 2 the events, 3 the attempts. ARGV: 1 the limit.
-- Returns the server's time (seconds, microseconds), the due time of the next operation (or
-- false), and then for each operation: its name, the order of its first event, the event (time of
-- the change in 8 bytes, round in 4 bytes, content), its attempts (or false).
-- See outbox_insert.lua for the form of events.
local due_key, events_key, attempts_key = KEYS[1], KEYS[2], KEYS[3]
local limit = tonumber(ARGV[1])
local call = redis.call

local time = call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
-- One more than demanded: the due time of the next one.
local found = call('ZRANGEBYSCORE', due_key, '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, limit + 1)
local answer = { time[1], time[2], false }
for at = 1, #found, 2 do
  local operation, due_ms = found[at], found[at + 1]
  if tonumber(due_ms) > now_ms or at > 2 * limit then
    answer[3] = due_ms
    break
  end
  local events = call('HGET', events_key, operation)
  if events and #events > 21 then
    local order, length = string.sub(events, 1, 17), struct.unpack('>I4', events, 18)
    answer[#answer + 1] = operation
    answer[#answer + 1] = order
    answer[#answer + 1] = string.sub(events, 22, 21 + length)
    answer[#answer + 1] = call('HGET', attempts_key, operation .. order)
  else
    -- A change failed before it wrote its event, or another program removed the event. Without
    -- this, the operation would stand in front of the others for ever.
    call('ZREM', due_key, operation)
  end
end
return answer
