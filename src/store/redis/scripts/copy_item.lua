-- Writes a record or a tombstone of a copy if the partition is still closed for that copy. Returns
-- 1 if it is, else 0.
--
-- KEYS: 1 the partition's epoch, 2 the record or tombstone, 3 the partition's index of unsettled
-- records, or of sagas.
local epoch_key, item_key, due_key = KEYS[1], KEYS[2], KEYS[3]
local copy_mark, value, keep_ms = ARGV[1], ARGV[2], ARGV[3]
local due_ms = ARGV[4] -- ms since 1970; 0: never
local member = ARGV[5] -- the slot in the due index
if redis.call('GET', epoch_key) ~= copy_mark then return 0 end
redis.call('SET', item_key, value, 'PX', keep_ms)
if due_ms ~= '0' then redis.call('ZADD', due_key, due_ms, member) end
return 1
