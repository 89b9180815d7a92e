-- Sets an entry aside whose signature is wrong: it is neither run nor delivered again.
-- KEYS[1] lane (stream)
-- KEYS[2] dead (stream)
-- ARGV[1] id
-- ARGV[2] reason
-- ARGV[3] lifetime of the dead stream (ms)
-- Returns 1 if it was set aside by this call, else 0
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if redis.call('XACK', KEYS[1], 'workers', ARGV[1]) == 0 then
  return 0
end
redis.call('XDEL', KEYS[1], ARGV[1])
if entry then
  local fields = entry[2]
  local last = math.min(#fields, 100)
  -- Whoever wrote it may have written thousands of fields, more than unpack can take.
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', '1000', '*', 'refused', ARGV[2], unpack(fields, 1, last))
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
return 1
