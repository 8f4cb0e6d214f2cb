-- Appends an entry of a copy to a partition's event log if the partition is still closed for that
-- copy. Returns 1 if it is, else 0.
--
-- KEYS: 1 the partition's epoch, 2 its event log, 3 its chain link.
local epoch_key, events_key, chain_key = KEYS[1], KEYS[2], KEYS[3]
local copy_mark, id, link = ARGV[1], ARGV[2], ARGV[3]
local event = ARGV[4] -- digest, member and event
if redis.call('GET', epoch_key) ~= copy_mark then return 0 end
redis.call('XADD', events_key, id, link, event)
redis.call('HSET', chain_key, 'l', link, 'i', id)
return 1
