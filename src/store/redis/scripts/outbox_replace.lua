-- Replaces the content of a waiting event. After outbox_counts.lua.
--
-- KEYS: 1 the counts, 2 the events.
-- ARGV: 1 the sink, 2 the content, 3 the next content, 4 the operation, 5 the order.
-- Returns 1, or 0 (the event is gone, or has another content).
-- See outbox_insert.lua for the form of events.
local counts_key, events_key = KEYS[1], KEYS[2]
local sink, content, next_content, operation, order = unpack(ARGV)

local events, at = redis.call('HGET', events_key, operation), 1
while events and at <= #events do
  local last = at + 20 + struct.unpack('>I4', events, at + 17)
  if string.sub(events, at, at + 16) == order then
    if string.sub(events, at + 33, last) ~= content then return 0 end
    local event = order .. struct.pack('>I4', 12 + #next_content)
      .. string.sub(events, at + 21, at + 32) .. next_content
    local line = string.format('0,0,0,%.0f ', #next_content - #content) .. sink .. '\n'
    add_count(counts_key, line)
    redis.call('HSET', events_key, operation,
      string.sub(events, 1, at - 1) .. event .. string.sub(events, last + 1))
    return 1
  end
  at = last + 1
end
return 0
