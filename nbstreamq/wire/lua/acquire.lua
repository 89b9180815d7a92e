-- Asks for leases of a limit: each is granted, or waits behind those that others have asked for. To ask again is
-- harmless.
-- KEYS[1] limits (hash)
-- KEYS[2] limit (hash)
-- KEYS[3] leases (hash)
-- KEYS[4] waiting (sorted set)
-- KEYS[5] workers (hash)
-- KEYS[6] where the worker learns of leases that are granted later: granted (list)
-- ARGV[1] name of the limit
-- ARGV[2] concurrent, if the server has forgotten the limit: how many leases at a time; '' for any number
-- ARGV[3] rate, if so: how many starts (1/s); '' for any number
-- ARGV[4..] the leases
-- Returns for each lease that is granted 0 and the lease; for the one that is next, if its time is known, the time
--   from now (ms) and the lease
-- @include limits
local at = {
  limit = KEYS[2], leases = KEYS[3], waiting = KEYS[4], workers = KEYS[5], own = KEYS[6],
  asked = {}, notes = {},
}
redis.call('HSET', KEYS[1], ARGV[1], '')
redis.call('EXPIRE', KEYS[1], 2592000)
if redis.call('HEXISTS', KEYS[2], 'rate') == 0 then
  redis.call('HSET', KEYS[2], 'concurrent', ARGV[2], 'rate', ARGV[3])
end
for k = 4, #ARGV do
  at.asked[ARGV[k]] = true
  if redis.call('HEXISTS', KEYS[3], ARGV[k]) == 1 then
    tell(at, ARGV[k], KEYS[6], 0)
  else
    redis.call('ZADD', KEYS[4], 'NX', redis.call('HINCRBY', KEYS[2], 'asked', 1), ARGV[k])
  end
end
grant(at)
return at.notes
