-- Forgets a dead worker, once nothing is left in its hands.
-- KEYS[1] workers (hash)
-- KEYS[2] the worker's own lane (stream)
-- KEYS[3..] lanes it served (streams)
-- ARGV[1] worker
-- Returns 1, or 0 if it still has pending entries: deleting the consumer would drop them; what it has
--   not read of its own lane is pending then, too
redis.pcall('XREADGROUP', 'GROUP', 'workers', ARGV[1], 'STREAMS', KEYS[2], '>')
for k = 2, #KEYS do
  -- pcall: a lane may be gone, or have no group yet; then the worker holds nothing of it.
  local pending = redis.pcall('XPENDING', KEYS[k], 'workers', '-', '+', 1, ARGV[1])
  if not pending.err and #pending > 0 then
    return 0
  end
end
for k = 2, #KEYS do
  redis.pcall('XGROUP', 'DELCONSUMER', KEYS[k], 'workers', ARGV[1])
end
redis.call('DEL', KEYS[2])
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
