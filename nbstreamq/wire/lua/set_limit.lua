-- Sets what a limit allows from now on, for everybody, and grants leases that it allows now.
-- KEYS[1] limits (hash)
-- KEYS[2] limit (hash)
-- KEYS[3] leases (hash)
-- KEYS[4] waiting (sorted set)
-- KEYS[5] workers (hash)
-- ARGV[1] name of the limit
-- ARGV[2] concurrent: how many leases at a time; '' for any number
-- ARGV[3] rate: how many starts (1/s); '' for any number
-- Returns 1
-- @include limits
redis.call('HSET', KEYS[1], ARGV[1], '')
redis.call('EXPIRE', KEYS[1], 2592000)
redis.call('HSET', KEYS[2], 'concurrent', ARGV[2], 'rate', ARGV[3])
grant({limit = KEYS[2], leases = KEYS[3], waiting = KEYS[4], workers = KEYS[5]})
return 1
