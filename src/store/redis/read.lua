-- Reads a record, with this server's time.
--
-- KEYS: the record; the tombstone, where that tells enough.
-- Returns seconds, microseconds, and the value: nothing (absent), the text, or of a large one the length.
--
-- The time comes first: a lease that is renewed in between must not look as if it were over.
local time = redis.call('TIME')
local value = redis.call('GET', KEYS[1]) or KEYS[2] and redis.call('GET', KEYS[2])
if value and #value > 65536 then value = #value end
return { time[1], time[2], value }
