-- Sends a task to the own lanes of workers, and keeps one copy for those that join later.
-- KEYS[1] workers (hash)
-- KEYS[2] setup (stream)
-- KEYS[3..] own lanes (streams) of the first workers in ARGV, in their order: the others get none
-- ARGV[1] number of workers
-- ARGV[2] number of fields and values of one message
-- ARGV[3..] the workers' names; then one message for each lane; then the one for late joiners
-- Returns 1, or 0 if the set of workers has changed: ask again
local n, size = tonumber(ARGV[1]), tonumber(ARGV[2])
if redis.call('HLEN', KEYS[1]) ~= n then
  return 0
end
for k = 1, n do
  if redis.call('HEXISTS', KEYS[1], ARGV[2 + k]) == 0 then
    return 0
  end
end
local i = 3 + n
for k = 3, #KEYS do
  redis.call('XADD', KEYS[k], '*', unpack(ARGV, i, i + size - 1))
  i = i + size
end
-- A late joiner does all of them before its first task: the newest 1000 must do.
redis.call('XADD', KEYS[2], 'MAXLEN', 1000, '*', unpack(ARGV, i, i + size - 1))
redis.call('EXPIRE', KEYS[2], 2592000)
return 1
