-- Removes the oldest batches of observations while they are too old or take too many bytes. Returns
-- the number of removed batches.
--
-- KEYS: 1 the stream of batches, 2 the bytes of all batches, 3 the list of the bytes of each batch,
-- in their order.
-- The size of a batch is stored beside the batch. A script that reads a batch copies it, which
-- takes longer than appending it.
local stream_key, total_key, sizes_key = KEYS[1], KEYS[2], KEYS[3]
local bytes_max = tonumber(ARGV[1])
local keep_ms = ARGV[2] -- empty: any age
local count_max = tonumber(ARGV[3]) -- batches that one call removes

local bytes = tonumber(redis.call('GET', total_key) or 0)
local removed = 0
-- The lengths differ if another client removed or added batches. Then sizes and batches don't
-- match. So the oldest elements of the longer list are removed, and the sizes are summed again.
local batches, sizes = redis.call('XLEN', stream_key), redis.call('LLEN', sizes_key)
if batches ~= sizes then
  local left = math.min(batches, sizes)
  redis.call('XTRIM', stream_key, 'MAXLEN', left)
  redis.call('LTRIM', sizes_key, sizes - left, -1)
  bytes = 0
  for _, size in ipairs(redis.call('LRANGE', sizes_key, 0, -1)) do bytes = bytes + size end
  redis.call('SET', total_key, string.format('%.0f', bytes))
end
local function remove_oldest()
  local size = redis.call('LPOP', sizes_key)
  -- Without a size there is no batch left.
  bytes = size and math.max(bytes - size, 0) or 0
  removed = removed + 1
  -- MAXLEN, because the oldest supported servers lack MINID.
  redis.call('XTRIM', stream_key, 'MAXLEN', math.max(redis.call('XLEN', stream_key) - 1, 0))
end
while bytes > bytes_max and removed < count_max do remove_oldest() end
if keep_ms ~= '' then
  local time = redis.call('TIME')
  local since_ms = time[1] * 1000 + math.floor(time[2] / 1000) - keep_ms
  while removed < count_max do
    local oldest = redis.call('XRANGE', stream_key, '-', '+', 'COUNT', 1)[1]
    if not oldest or tonumber(string.match(oldest[1], '^%d+')) >= since_ms then break end
    remove_oldest()
  end
end
if removed > 0 then redis.call('SET', total_key, string.format('%.0f', bytes)) end
return removed
