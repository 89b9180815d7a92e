-- Says that a supervisor and its workers live, and returns the heartbeats of all supervisors.
-- KEYS[1] nodes (sorted set)
-- KEYS[2] workers (hash)
-- KEYS[3..] its workers' own lanes (streams)
-- ARGV[1] node
-- ARGV[2] how long ago the node sent its last heartbeat, by its own clock (ms)
-- ARGV[3] lifetime of all keys (ms)
-- ARGV[4..] for each worker: id, description
-- Returns by how much the server's clock went back since then (ms), then each node and its time
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local nodes, step = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'), 0
for k = 1, #nodes, 2 do
  if nodes[k] == ARGV[1] then
    step = nodes[k + 1] + ARGV[2] - now
  end
end
if step > 2000 then
  -- All times that were written before the step are wrong by it. Correcting the nodes' here keeps
  -- the next node from seeing the same step again.
  for k = 1, #nodes, 2 do
    redis.call('ZADD', KEYS[1], nodes[k + 1] - step, nodes[k])
  end
else
  step = 0
end
redis.call('ZADD', KEYS[1], now, ARGV[1])
if #ARGV > 3 then
  redis.call('HSET', KEYS[2], unpack(ARGV, 4))
end
for k = 1, #KEYS do
  redis.call('PEXPIRE', KEYS[k], ARGV[3])
end
return {step, unpack(redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'))}
