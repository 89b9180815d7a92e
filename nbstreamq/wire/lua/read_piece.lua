-- Reads a part of an entry that is too large for one reply.
-- KEYS[1] lane or events (stream)
-- ARGV[1] id of the entry, or where to begin: the first from there on is read
-- ARGV[2] from which byte on, of its fields and values in a row
-- ARGV[3] most bytes
-- Returns its id, the lengths of its fields and values, and the bytes; nothing if there is none
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', 1)[1]
if not entry then
  return {}
end
local lengths, whole = {}, table.concat(entry[2])
for k, part in ipairs(entry[2]) do
  lengths[k] = #part
end
return {entry[1], lengths, string.sub(whole, ARGV[2] + 1, ARGV[2] + ARGV[3])}
