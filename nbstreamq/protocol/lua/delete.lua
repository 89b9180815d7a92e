-- Forgets a named job; what of it is in a lane should be cancelled first.
-- KEYS[1] jobs (hash)
-- KEYS[2] job (hash)
-- KEYS[3] inputs (hash)
-- KEYS[4] events (stream)
-- ARGV[1] name
-- ARGV[2] job
-- Returns 1, or 0 if it was gone
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then  -- else another has taken its place
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return redis.call('DEL', KEYS[2], KEYS[3], KEYS[4]) > 0 and 1 or 0
