-- Forgets a named job; what of it is in a lane should be cancelled first.
-- KEYS[1] jobs (hash)
-- KEYS[2..] what there is of the job: job (hash), inputs (hash), events (stream), settled (hash),
--   backlog (list), placed (hash)
-- ARGV[1] name
-- ARGV[2] job
-- Returns 1, or 0 if it was gone
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then  -- otherwise another job has its name
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return redis.call('DEL', unpack(KEYS, 2)) > 0 and 1 or 0
