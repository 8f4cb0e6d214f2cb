-- Keeps a text for ever, if what is kept is what was expected (an empty text: nothing is); returns 1 if it did.
--
-- KEYS: the text. ARGV: 1 the expected text, 2 the next.
local current = redis.call('GET', KEYS[1]) or ''
if current == ARGV[2] then return 1 end
if current ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
