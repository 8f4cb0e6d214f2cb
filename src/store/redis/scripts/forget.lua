-- Removes a slot from the due index if its record is absent or settled. Returns 1 if the slot
-- stays, else 0.
--
-- KEYS: 1 the record, 2 the partition's due index.
local record_key, due_key = KEYS[1], KEYS[2]
local member = ARGV[1] -- the slot in the due index
-- The state is byte 17 of the value; 1 and 2 are unsettled. An absent key reads as an empty text.
local state = string.byte(redis.call('GETRANGE', record_key, 16, 16))
if state and state <= 2 then return 1 end
redis.call('ZREM', due_key, member)
return 0
