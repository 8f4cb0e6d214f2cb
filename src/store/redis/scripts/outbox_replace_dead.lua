-- Replaces the content and the report of a dead letter. After outbox_counts.lua.
--
-- KEYS: 1 the counts, 2 the dead letters.
-- ARGV: 1 the sink, 2 the content, 3 the next content, 4 the id, 5 the report, 6 the next report.
-- Returns 1, or 0 (the dead letter is gone, or has another content or report).
-- See outbox_bury.lua for the form of a dead letter.
local counts_key, dead_key = KEYS[1], KEYS[2]
local sink, content, next_content, id, report, next_report = unpack(ARGV)

local letter = redis.call('HGET', dead_key, id)
if not letter then return 0 end
local last = 51 + struct.unpack('>I4', letter, 48)
local report_at = last + 3 + #sink
if string.sub(letter, 64, last) ~= content then return 0 end
if string.sub(letter, report_at) ~= report then return 0 end
local line = string.format('0,0,0,%.0f ', #next_content - #content) .. sink .. '\n'
add_count(counts_key, line)
redis.call('HSET', dead_key, id,
  string.sub(letter, 1, 47) .. struct.pack('>I4', 12 + #next_content)
  .. string.sub(letter, 52, 63) .. next_content
  .. string.sub(letter, last + 1, report_at - 1) .. next_report)
return 1
