-- Puts a batch of tasks into their lanes, once, however often the batch is sent.
-- KEYS[1] session (string)
-- KEYS[2] control (stream)
-- KEYS[3..] for each lane used: lane (stream), delayed (sorted set)
-- ARGV[1] number of the batch
-- ARGV[2] lifetime of the session (ms)
-- ARGV[3..] for each task: index of its lane (from 0), delay (ms), number of fields and values, those
-- Returns the number of the last batch before this; if it is not smaller, nothing was written
local last = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
if tonumber(ARGV[1]) <= last then
  return last
end
local i, due = 3, false
while i <= #ARGV do
  local at, delay, size = 3 + 2 * ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local first, stop = i + 3, i + 2 + size
  if delay > 0 then
    local entry = cmsgpack.pack({unpack(ARGV, first, stop)})
    local time = redis.call('TIME')
    redis.call('ZADD', KEYS[at + 1], time[1] * 1000 + math.floor(time[2] / 1000) + delay, entry)
    redis.call('EXPIRE', KEYS[at + 1], 2592000)
    due = true
  else
    redis.call('XADD', KEYS[at], '*', unpack(ARGV, first, stop))
  end
  i = stop + 1
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if due then
  -- Supervisors sleep until the earliest due task they know of: wake them.
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', '1000', '*', 'kind', 'due')
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
return last
