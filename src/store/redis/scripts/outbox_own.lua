-- Makes a relay the owner of a partition's outbox, if the owner is as expected.
--
-- KEYS: 1 the owner. ARGV: 1 the fence (8 bytes), 2 the expected fence (empty: none).
-- Returns 1 if the relay owns the partition, else 0.
local owner = redis.call('GET', KEYS[1]) or ''
if owner == ARGV[1] then return 1 end
if owner ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
return 1
