-- Says that a named job has all its items.
-- KEYS[1] job (hash)
-- KEYS[2] events (stream)
-- ARGV[1] how many items there are
-- ARGV[2] the sealed event that says so
-- Returns 1, or 0 if the job has more or fewer, or is gone
if redis.call('HGET', KEYS[1], 'n') ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'total', ARGV[1])
redis.call('XADD', KEYS[2], 'NOMKSTREAM', '*', 'event', ARGV[2])
return 1
