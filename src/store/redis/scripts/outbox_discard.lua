-- Removes a dead letter. After outbox_counts.lua.
--
-- KEYS: 1 the dead letters, 2 their ids by the time of the burial, 3 the counts. ARGV: 1 the id.
-- Returns 1, or 0 (there is no such dead letter).
local dead_key, dead_at_key, counts_key = KEYS[1], KEYS[2], KEYS[3]
local id = ARGV[1]

local letter = redis.call('HGET', dead_key, id)
if not letter then return 0 end
-- See outbox_bury.lua for the form of a dead letter.
local kind, length = string.byte(letter), struct.unpack('>I4', letter, 48)
local sink_length = struct.unpack('>I2', letter, 52 + length)
local sink = string.sub(letter, 54 + length, 53 + length + sink_length)
local line = kind == 0 and '0,-1,0,%.0f ' or '0,0,-1,%.0f '
redis.call('HDEL', dead_key, id)
redis.call('ZREM', dead_at_key, id)
add_count(counts_key, string.format(line, 12 - length) .. sink .. '\n')
return 1
