-- Takes away the oldest batches of observations, where they are too old or too many.
--
-- KEYS: the stream, what its batches take in bytes, and what each takes, in their order. ARGV: 1 bytes that they may take at
-- most, 2 ms that they are kept (empty: however long), 3 how many to take away at most. Returns how many went.
--
-- What a batch takes is kept beside it, because a script that looks at a batch copies it: that takes longer than appending it.
local bytes = tonumber(redis.call('GET', KEYS[2]) or 0)
local most, since, gone = tonumber(ARGV[1]), 0, 0
local function take()
  local size = redis.call('LPOP', KEYS[3])
  -- Where none is left nothing is known to be there.
  bytes = size and math.max(bytes - size, 0) or 0
  gone = gone + 1
  -- MINID is younger than the oldest servers.
  redis.call('XTRIM', KEYS[1], 'MAXLEN', redis.call('XLEN', KEYS[1]) - 1)
end
while bytes > most and gone < tonumber(ARGV[3]) do take() end
if ARGV[2] ~= '' then
  local time = redis.call('TIME')
  since = time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[2]
  while gone < tonumber(ARGV[3]) do
    local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
    if not oldest or tonumber(string.match(oldest[1], '^%d+')) >= since then break end
    take()
  end
end
if gone > 0 then redis.call('SET', KEYS[2], string.format('%.0f', bytes)) end
return gone
