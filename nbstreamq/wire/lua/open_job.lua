-- Makes a named job, unless its name is another job's; the one that loses its name is forgotten.
-- KEYS[1] jobs (hash)
-- KEYS[2] job (hash)
-- KEYS[3] events (stream)
-- KEYS[4..] what there is of the owner: job (hash), inputs (hash), events (stream),
--   settled (hash), backlog (list), placed (hash)
-- ARGV[1] name
-- ARGV[2] owner that may lose the name, a job's id; '' for none
-- ARGV[3] job
-- ARGV[4] about
-- ARGV[5] lifetime of job and events (s)
-- ARGV[6] the sealed event that begins the stream
-- Returns 1, also if it was made by this call's first attempt; 0 if the name is another's
local owner = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if owner == ARGV[3] then
  return 1
end
if owner ~= ARGV[2] then
  return 0
end
local is_first = redis.call('HLEN', KEYS[1]) == 0
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
if is_first then redis.call('EXPIRE', KEYS[1], 2592000) end  -- else a job that is kept may have made it last
redis.call('DEL', unpack(KEYS, 4))
local time = redis.call('TIME')
local made = time[1] + time[2] / 1000000
redis.call('HSET', KEYS[2], 'about', ARGV[4], 'made', made, 'n', 0, 'run', 0)
redis.call('XADD', KEYS[3], '*', 'event', ARGV[6])
redis.call('EXPIRE', KEYS[2], ARGV[5])
redis.call('EXPIRE', KEYS[3], ARGV[5])
return 1
