-- Extends a lease that has not expired, and the life of its record, if the record is still in
-- flight, or a saga, under the fence. Returns 1 if the lease was extended, else 0. Changes no
-- version, and wakes no waiter.
--
-- KEYS: 1 the record, 2 the partition's index of unsettled records, 3 its index of sagas.
local record_key, due_key, sagas_key = KEYS[1], KEYS[2], KEYS[3]
local fence = ARGV[1] -- bytes 9 to 16 of the head
local due_in_ms, keep_ms = ARGV[2], ARGV[3]
local member = ARGV[4] -- the slot in the index

local current = redis.call('GET', record_key)
if not current or string.sub(current, 9, 16) ~= fence then return 0 end
-- 1 in flight, 6 saga.
local state = string.byte(current, 17)
if state ~= 1 and state ~= 6 then return 0 end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
-- Another gateway may already have acted on the end of this lease.
if struct.unpack('>I8', string.sub(current, 26, 33)) <= now_ms then return 0 end
local due_ms = now_ms + due_in_ms
local renewed = string.sub(current, 1, 25) .. struct.pack('>I8', due_ms) .. string.sub(current, 34)
redis.call('SET', record_key, renewed, 'PX', keep_ms)
redis.call('ZADD', state == 1 and due_key or sagas_key, due_ms, member)
return 1
