-- The beginning of a write that begins a saga, takes one over or bars an operation. Such a write has
-- the conditions of a claim: the partition has the expected epoch, and a tombstone bars the claim of
-- a saga. Before change.lua, which has the other keys and arguments.
--
-- The last key is the partition's epoch, the one before is the tombstone. The last argument is the
-- expected epoch, the one before is empty if no tombstone bars the write.
-- Returns 0 (other epoch) or the tombstone. Otherwise change.lua goes on.
local epoch_key, barrier_key = table.remove(KEYS), table.remove(KEYS)
local guarded_epoch, heeds_tombstone = table.remove(ARGV), table.remove(ARGV) ~= ''
local guarded = redis.call('GETRANGE', KEYS[1], 0, 16)

-- An absent key reads as an empty text, and an empty version expects an empty slot. If another
-- record is in the way, change.lua returns it.
if string.sub(guarded, 1, 8) == ARGV[1] then
  if heeds_tombstone and (guarded == '' or string.byte(guarded, 17) == 4) then
    local barrier = redis.call('GET', barrier_key)
    if barrier then return barrier end
  end
  -- A server that lost its records lacks the epoch.
  if redis.call('GET', epoch_key) ~= guarded_epoch then return 0 end
end
