-- The beginning of the scripts that change a waiting event.
--
-- KEYS: 1 the owner, 2 the due operations, 3 the events, 4 the attempts, 5 the places of old events
-- by the time of the change, then the counts (only to take the event out).
-- ARGV: 1 the fence, 2 the operation, 3 the order, 4 the sink, 5 the round.
-- See outbox_insert.lua for the form of events.
local owner_key, due_key, events_key = KEYS[1], KEYS[2], KEYS[3]
local attempts_key, old_key, counts_key = KEYS[4], KEYS[5], KEYS[6]
local fence, operation, order, sink = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local round = tonumber(ARGV[5])
local name = operation .. order
local call = redis.call

-- Returns the first and the last byte of the event among those of its operation. Nothing, if it
-- waits in another round.
local function find(events)
  local at = 1
  while events and at <= #events do
    local last = at + 20 + struct.unpack('>I4', events, at + 17)
    if string.sub(events, at, at + 16) == order then
      if struct.unpack('>I4', events, at + 29) ~= round then return nil end
      return at, last
    end
    at = last + 1
  end
end
local function time_ms()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
-- Removes the event. The next event of its operation is due now.
local function take(events, at, last)
  -- Old events have attempts.
  if call('HDEL', attempts_key, name) == 1 then call('ZREM', old_key, name) end
  if at == 1 and last == #events then
    call('HDEL', events_key, operation)
    call('ZREM', due_key, operation)
    return
  end
  local rest = string.sub(events, 1, at - 1) .. string.sub(events, last + 1)
  call('HSET', events_key, operation, rest)
  call('ZADD', due_key, time_ms(), operation)
  -- Its due time does not show any more how long the next one has waited.
  local next_name = operation .. string.sub(rest, 1, 17)
  call('ZADD', old_key, struct.unpack('>I8', rest, 22), next_name)
  if not call('HGET', attempts_key, next_name) then
    call('HSET', attempts_key, next_name, string.rep('\0', 12))
  end
end
