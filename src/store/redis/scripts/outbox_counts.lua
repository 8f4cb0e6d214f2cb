-- The beginning of the scripts that change the counts of a partition.
--
-- The counts are lines: waiting events, dead letters of kind `receiver`, of kind `gateway`, and
-- bytes, then the sink. The sum of a sink's lines counts. So a change only appends a line, which is
-- faster than a read and a write.
local counts_max = 2048 -- bytes, beyond which the lines are summed

local function add_count(counts_key, line)
  if redis.call('APPEND', counts_key, line) <= counts_max then return end
  local sums, lines = {}, {}
  local form = '(%-?%d+),(%-?%d+),(%-?%d+),(%-?%d+) ([^\n]*)\n'
  for waiting, receiver, gateway, bytes, sink in
    string.gmatch(redis.call('GET', counts_key), form)
  do
    local sum = sums[sink] or { 0, 0, 0, 0 }
    sums[sink] = { sum[1] + waiting, sum[2] + receiver, sum[3] + gateway, sum[4] + bytes }
  end
  for sink, sum in pairs(sums) do
    if sum[1] ~= 0 or sum[2] ~= 0 or sum[3] ~= 0 then
      lines[#lines + 1] = string.format('%.0f,%.0f,%.0f,%.0f ', unpack(sum)) .. sink .. '\n'
    end
  end
  redis.call('SET', counts_key, table.concat(lines))
end
