-- Reads a record, with the server's time.
--
-- KEYS: 1 the record, 2 the tombstone (only if it is wanted when the record is absent).
-- Returns seconds, microseconds, and the value: absent, the text, or the length of a large value.
local record_key, tombstone_key = KEYS[1], KEYS[2]
-- The time is read first: a lease that is renewed in between must not look expired.
local time = redis.call('TIME')
local value = redis.call('GET', record_key) or tombstone_key and redis.call('GET', tombstone_key)
if value and #value > 65536 then value = #value end
return { time[1], time[2], value }
