-- Registers a worker and returns the set-up that every worker must have done, in one step:
-- what `everywhere` asks for later comes through the worker's own lane, so none is missed or doubled.
-- KEYS[1] workers (hash)
-- KEYS[2] setup (stream)
-- KEYS[3] the worker's own lane (stream)
-- ARGV[1] worker
-- ARGV[2] description
-- ARGV[3] lifetime of workers and own lane (ms)
-- Returns the entries of the set-up stream
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('XGROUP', 'CREATE', KEYS[3], 'workers', '0', 'MKSTREAM')
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return redis.call('XRANGE', KEYS[2], '-', '+')
