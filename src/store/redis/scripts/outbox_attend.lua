-- Keeps a relay among the relays of the store.
--
-- KEYS: 1 the relays. ARGV: 1 the fence (8 bytes), 2 its lease in ms.
-- Returns the fences of all relays with a running lease.
local relays_key = KEYS[1]
local fence, lease_ms = ARGV[1], ARGV[2]
local call = redis.call

local time = call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
for _, ended in ipairs(call('ZRANGEBYSCORE', relays_key, '-inf', now_ms)) do
  call('ZREM', relays_key, ended)
end
call('ZADD', relays_key, now_ms + lease_ms, fence)
return call('ZRANGE', relays_key, 0, -1)
