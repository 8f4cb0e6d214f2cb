-- Stores a note without an expiry if the stored note is the expected one. Returns 1 if the next
-- note is stored, else 0.
--
-- KEYS: 1 the note.
local note_key = KEYS[1]
local expected, next_note = ARGV[1], ARGV[2] -- expected: empty if there must be none
local current = redis.call('GET', note_key) or ''
if current == next_note then return 1 end
if current ~= expected then return 0 end
redis.call('SET', note_key, next_note)
return 1
