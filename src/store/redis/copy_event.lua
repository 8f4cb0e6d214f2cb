-- Appends an entry of a copy to a partition's event log, if the partition is still closed for that copy; returns 1 if it is.
--
-- KEYS: the partition's epoch, its log, the last entry of its chain. ARGV: 1 the mark of the copy, 2 the entry's id, 3 its
-- link, 4 digest, member and event.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('XADD', KEYS[2], ARGV[2], ARGV[3], ARGV[4])
redis.call('HSET', KEYS[3], 'l', ARGV[3], 'i', ARGV[2])
return 1
