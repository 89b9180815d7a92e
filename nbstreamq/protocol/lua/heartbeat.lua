-- Says that a supervisor and its workers live, and learns which other supervisors fell silent.
-- KEYS[1] nodes (sorted set)
-- KEYS[2] workers (hash)
-- KEYS[3..] its workers' own lanes (streams)
-- ARGV[1] node
-- ARGV[2] silence after which a node counts as dead (ms)
-- ARGV[3] lifetime of all keys (ms)
-- ARGV[4..] for each worker: id, description
-- Returns the names of the silent nodes
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
if #ARGV > 3 then
  redis.call('HSET', KEYS[2], unpack(ARGV, 4))
end
for k = 1, #KEYS do
  redis.call('PEXPIRE', KEYS[k], ARGV[3])
end
return redis.call('ZRANGE', KEYS[1], '-inf', '(' .. (now - ARGV[2]), 'BYSCORE')
