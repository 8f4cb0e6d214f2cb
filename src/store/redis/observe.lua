-- Appends a batch of observations, and takes away the oldest where they are too old or too many.
--
-- KEYS: the stream, and what its batches take, in bytes. ARGV: 1 the batch (empty: none, only take away), 2 bytes that they may
-- take at most, 3 bytes that each takes beside its own, 4 ms that they are kept (empty: however long), 5 how many to take away
-- at most. Returns how many went.
local bytes = tonumber(redis.call('GET', KEYS[2]) or 0)
if ARGV[1] ~= '' then
  redis.call('XADD', KEYS[1], '*', 'b', ARGV[1])
  bytes = bytes + #ARGV[1] + ARGV[3]
end
local most, since = tonumber(ARGV[2]), 0
if ARGV[4] ~= '' then
  local time = redis.call('TIME')
  since = time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[4]
end
local gone = 0
if bytes > most or since > 0 then
  for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[5])) do
    if bytes <= most and tonumber(string.match(entry[1], '^%d+')) >= since then break end
    bytes = bytes - #entry[2][2] - ARGV[3]
    gone = gone + 1
  end
  -- MINID is younger than the oldest servers.
  if gone > 0 then redis.call('XTRIM', KEYS[1], 'MAXLEN', redis.call('XLEN', KEYS[1]) - gone) end
end
if ARGV[1] ~= '' or gone > 0 then redis.call('SET', KEYS[2], string.format('%.0f', math.max(bytes, 0))) end
return gone
