-- Writes a dead letter of a copy if the partition is still closed for that copy. After
-- outbox_counts.lua. Returns 1 if it is, else 0.
--
-- KEYS: 1 the partition's epoch, 2 the counts, 3 the dead letters, 4 their ids by the time of the
-- burial.
local epoch_key, counts_key, dead_key, dead_at_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local copy_mark, id, letter, line = ARGV[1], ARGV[2], ARGV[3], ARGV[4] -- line: its count
local buried_ms = ARGV[5] -- ms since 1970
if redis.call('GET', epoch_key) ~= copy_mark then return 0 end
redis.call('ZADD', dead_at_key, buried_ms, id)
-- An interrupted write may have copied the dead letter already.
if redis.call('HSET', dead_key, id, letter) == 1 then add_count(counts_key, line) end
return 1
