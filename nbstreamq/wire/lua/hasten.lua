-- Makes delayed tasks due earlier: the server's clock went back, and their times are from before.
-- KEYS[1] control (stream)
-- KEYS[2..] delayed (sorted sets)
-- ARGV[1] by how much the clock went back (ms)
-- Returns how many tasks it moved
local n = 0
for k = 2, #KEYS do
  local tasks = redis.call('ZRANGE', KEYS[k], 0, -1, 'WITHSCORES')
  for i = 1, #tasks, 2 do
    redis.call('ZADD', KEYS[k], tasks[i + 1] - ARGV[1], tasks[i])
    n = n + 1
  end
end
if n > 0 then
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', '1000', '*', 'kind', 'due')
  redis.call('EXPIRE', KEYS[1], 604800)
end
return n
