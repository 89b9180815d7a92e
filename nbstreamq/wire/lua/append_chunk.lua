-- Adds a chunk to the end of a named job, and puts its task into a lane or its backlog; once, however often sent.
-- KEYS[1] job (hash)
-- KEYS[2] inputs (hash)
-- KEYS[3] control (stream)
-- KEYS[4] lane (stream)
-- KEYS[5] delayed (sorted set)
-- KEYS[6] backlog (list)
-- KEYS[7] placed (hash)
-- KEYS[8] backlogs (hash)
-- KEYS[9] workers (hash)
-- ARGV[1] first of the chunk's items
-- ARGV[2] number of items
-- ARGV[3] mark by which the chunk is known
-- ARGV[4] the sealed arguments
-- ARGV[5] delay (ms)
-- ARGV[6] lifetime of job and inputs (s)
-- ARGV[7] id of the job
-- ARGV[8..] the task
-- Returns 1, or 0 if the job ends elsewhere: it has this chunk already, or is gone
-- @include backlog
local at = {
  lane = KEYS[4], backlog = KEYS[6], placed = KEYS[7], backlogs = KEYS[8], workers = KEYS[9],
  job = ARGV[7],
}
if redis.call('HGET', KEYS[1], 'n') ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'n', ARGV[1] + ARGV[2], ARGV[1], ARGV[3])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[4])
if redis.call('PTTL', KEYS[1]) > 0 then  -- else it is kept for ever
  redis.call('EXPIRE', KEYS[1], ARGV[6])
  redis.call('EXPIRE', KEYS[2], ARGV[6])
end
if tonumber(ARGV[5]) > 0 then
  local time = redis.call('TIME')
  local at = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[5]
  redis.call('ZADD', KEYS[5], at, cmsgpack.pack({unpack(ARGV, 8)}))
  redis.call('EXPIRE', KEYS[5], 2592000)
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', '1000', '*', 'kind', 'due')
  redis.call('EXPIRE', KEYS[3], ARGV[6])
else
  enqueue(at, {unpack(ARGV, 8)})
end
return 1
