-- Takes away the oldest batches of observations, where they are too old or too many.
--
-- KEYS: the stream, what its batches take in bytes, and what each takes, in their order. ARGV: 1 bytes that they may take at
-- most, 2 ms that they are kept (empty: however long), 3 how many to take away at most. Returns how many went.
--
-- What a batch takes is kept beside it, because a script that looks at a batch copies it: that takes longer than appending it.
local bytes = tonumber(redis.call('GET', KEYS[2]) or 0)
local most, since, gone = tonumber(ARGV[1]), 0, 0
-- Not as many of the one as of the other: somebody took batches away, or put some in. Counted on like that, each new batch could
-- be taken for one too many, or the old ones for none. So the oldest go, of which nothing is known, and the rest is counted anew.
local held, sized = redis.call('XLEN', KEYS[1]), redis.call('LLEN', KEYS[3])
if held ~= sized then
  local left = math.min(held, sized)
  redis.call('XTRIM', KEYS[1], 'MAXLEN', left)
  redis.call('LTRIM', KEYS[3], sized - left, -1)
  bytes = 0
  for _, size in ipairs(redis.call('LRANGE', KEYS[3], 0, -1)) do bytes = bytes + size end
  redis.call('SET', KEYS[2], string.format('%.0f', bytes))
end
local function take()
  local size = redis.call('LPOP', KEYS[3])
  -- Where none is left nothing is known to be there.
  bytes = size and math.max(bytes - size, 0) or 0
  gone = gone + 1
  -- MINID is younger than the oldest servers.
  redis.call('XTRIM', KEYS[1], 'MAXLEN', math.max(redis.call('XLEN', KEYS[1]) - 1, 0))
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
