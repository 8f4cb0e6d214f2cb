-- Extends a lease that isn't over, if the record is still in flight under the fence. Changes no version, wakes nobody.
--
-- KEYS: the record, the partition's due index. ARGV: 1 the fence and the state (9 bytes of the head), 2 ms until due,
-- 3 ms to keep, 4 the slot's member in the index.
local current = redis.call('GET', KEYS[1])
if not current or string.sub(current, 9, 17) ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- Somebody may have read already that it is over.
if struct.unpack('>I8', string.sub(current, 26, 33)) <= now then return 0 end
local due = now + ARGV[2]
redis.call('SET', KEYS[1], string.sub(current, 1, 25) .. struct.pack('>I8', due) .. string.sub(current, 34), 'PX', ARGV[3])
redis.call('ZADD', KEYS[2], due, ARGV[4])
return 1
