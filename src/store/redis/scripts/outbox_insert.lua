-- The beginning of the scripts that add events to the outbox, after outbox_counts.lua.
--
-- The waiting events of an operation are one text. Most have one event. Each event is: order (17
-- bytes), length (4), time of the change (ms, 8), round (4), content. They are in order.

-- Compares two orders byte by byte: the operators compare texts by the locale of the server.
local function is_before(left, right)
  for at = 1, 17 do
    local a, b = string.byte(left, at), string.byte(right, at)
    if a ~= b then return a < b end
  end
  return false
end

-- Returns the events with one more; nil if it waits already.
local function insert_event(events, event)
  if events == '' then return event end
  local order, at = string.sub(event, 1, 17), 1
  while at <= #events do
    local other = string.sub(events, at, at + 16)
    if other == order then return nil end
    if is_before(order, other) then break end
    at = at + 21 + struct.unpack('>I4', events, at + 17)
  end
  return string.sub(events, 1, at - 1) .. event .. string.sub(events, at)
end

-- For the events of change.lua, returns by number the events of the operation with that one. Has
-- nothing for an event that waits already: a change that is written again after a loss adds none.
-- `outbox_keys` and `outbox_args` are the places of the counts and of the time of the change.
local function insert_all(outbox_keys, outbox_args, operation)
  local all, inserted = {}, {}
  for n = 0, (#KEYS - outbox_keys) / 2 - 1 do
    local events_key = KEYS[outbox_keys + 2 + 2 * n]
    local events = all[events_key] or redis.call('HGET', events_key, operation) or ''
    inserted[n] = insert_event(events, ARGV[outbox_args + 3 + 3 * n])
    all[events_key] = inserted[n] or events
  end
  return inserted
end
