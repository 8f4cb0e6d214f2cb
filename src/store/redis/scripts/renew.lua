-- Extends a lease that has not expired, and the life of its record, if the record is still in
-- flight under the fence. Returns 1 if the lease was extended, else 0. Changes no version, and
-- wakes no waiter.
--
-- KEYS: 1 the record, 2 the partition's due index.
local record_key, due_key = KEYS[1], KEYS[2]
local fence_and_state = ARGV[1] -- bytes 9 to 17 of the head
local due_in_ms, keep_ms = ARGV[2], ARGV[3]
local member = ARGV[4] -- the slot in the due index

local current = redis.call('GET', record_key)
if not current or string.sub(current, 9, 17) ~= fence_and_state then return 0 end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
-- Another gateway may already have acted on the end of this lease.
if struct.unpack('>I8', string.sub(current, 26, 33)) <= now_ms then return 0 end
local due_ms = now_ms + due_in_ms
local renewed = string.sub(current, 1, 25) .. struct.pack('>I8', due_ms) .. string.sub(current, 34)
redis.call('SET', record_key, renewed, 'PX', keep_ms)
redis.call('ZADD', due_key, due_ms, member)
return 1
