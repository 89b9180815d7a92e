-- Puts ended items of a named job into their lane or its backlog again, unless another client just did.
-- KEYS[1] job (hash)
-- KEYS[2] events (stream)
-- KEYS[3] cancelled (hash)
-- KEYS[4] lane (stream)
-- KEYS[5] backlog (list)
-- KEYS[6] placed (hash)
-- KEYS[7] backlogs (hash)
-- KEYS[8] workers (hash)
-- ARGV[1] number of the last rerun
-- ARGV[2] job
-- ARGV[3] about
-- ARGV[4] how many of the items had failed
-- ARGV[5] how many were cancelled: all that are
-- ARGV[6] the sealed event
-- ARGV[7] number of fields and values of a task
-- ARGV[8] token of this rerun, the same however often it is sent
-- ARGV[9..] the tasks
-- Returns 1, also if it was done before; 0 if somebody else was first, or fewer have failed; -1 while cancelled items are still in a lane
-- @include backlog
if redis.call('HGET', KEYS[1], 'by') == ARGV[8] then
  return 1
end
local failed = tonumber(redis.call('HGET', KEYS[1], 'failed') or '0')
if redis.call('HGET', KEYS[1], 'run') ~= ARGV[1] or failed < tonumber(ARGV[4]) then
  return 0
end
if tonumber(redis.call('HGET', KEYS[1], 'cancelled') or '0') < tonumber(ARGV[5]) then
  return -1
end
redis.call('HINCRBY', KEYS[1], 'run', 1)
redis.call('HINCRBY', KEYS[1], 'failed', 0 - ARGV[4])
redis.call('HINCRBY', KEYS[1], 'cancelled', 0 - ARGV[5])
redis.call('HSET', KEYS[1], 'about', ARGV[3], 'by', ARGV[8])
if tonumber(ARGV[5]) > 0 then
  redis.call('HDEL', KEYS[3], ARGV[2])
  redis.call('HINCRBY', KEYS[3], '#', 1)
end
redis.call('XADD', KEYS[2], '*', 'event', ARGV[6])
local at = {
  lane = KEYS[4], backlog = KEYS[5], placed = KEYS[6], backlogs = KEYS[7], workers = KEYS[8],
  job = ARGV[2],
}
for i = 9, #ARGV, tonumber(ARGV[7]) do
  enqueue(at, {unpack(ARGV, i, i + ARGV[7] - 1)})
end
return 1
