-- Forgets the lane of a home, if it holds nothing: workers then no longer look into it.
-- KEYS[1] lanes (hash)
-- KEYS[2] lane (stream)
-- KEYS[3] delayed (sorted set)
-- ARGV[1] lane
-- ARGV[2] lifetime of the empty stream (s): workers that wait on it must not find it gone
-- Returns 1, or 0 if it holds anything
if redis.call('XLEN', KEYS[2]) + redis.call('ZCARD', KEYS[3]) > 0 then
  return 0
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1
