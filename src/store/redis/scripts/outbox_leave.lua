-- Removes a relay from the relays of the store, and wakes the others, so that they take over its
-- partitions.
--
-- KEYS: 1 the relays.
-- ARGV: 1 the fence (8 bytes), 2 the channel of the wake-ups, 3 the message.
local left = redis.call('ZREM', KEYS[1], ARGV[1])
-- See change.lua.
if left == 1 then redis.pcall('PUBLISH', ARGV[2], ARGV[3]) end
return left
