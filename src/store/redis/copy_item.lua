-- Writes a record or a tombstone of a copy, if the partition is still closed for that copy; returns 1 if it is.
--
-- KEYS: the partition's epoch, the record or tombstone, the partition's due index. ARGV: 1 the mark of the copy, 2 the value,
-- 3 ms to keep, 4 ms since 1970 when it falls due (0: never), 5 the slot's member in the index.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
if ARGV[4] ~= '0' then redis.call('ZADD', KEYS[3], ARGV[4], ARGV[5]) end
return 1
