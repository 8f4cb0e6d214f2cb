-- Removes a slot from an index of due times if its record is absent, or has a state that does not
-- belong there. Returns 1 if the slot stays, else 0.
--
-- KEYS: 1 the record, 2 the partition's index of unsettled records, or of sagas.
local record_key, due_key = KEYS[1], KEYS[2]
local member = ARGV[1] -- the slot in the index
local lowest, highest = tonumber(ARGV[2]), tonumber(ARGV[3]) -- states that belong in the index
-- The state is byte 17 of the value. An absent key reads as an empty text.
local state = string.byte(redis.call('GETRANGE', record_key, 16, 16))
if state and state >= lowest and state <= highest then return 1 end
redis.call('ZREM', due_key, member)
return 0
