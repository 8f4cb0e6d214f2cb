-- Takes a slot out of the due index if its record is gone or settled; returns 1 if it stays.
--
-- KEYS: the record, the partition's due index. ARGV: 1 the slot's member in the index.
-- The state is byte 17 of the value; 1 and 2 are unsettled. A key that is gone reads as an empty string.
local state = string.byte(redis.call('GETRANGE', KEYS[1], 16, 16))
if state and state <= 2 then return 1 end
redis.call('ZREM', KEYS[2], ARGV[1])
return 0
