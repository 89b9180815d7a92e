-- Moves the delayed tasks that are due into their lane.
-- KEYS[1] delayed (sorted set)
-- KEYS[2] lane (stream)
-- Returns milliseconds until the next one is due; -1 if there is none
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, entry in ipairs(redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, 1000)) do
  redis.call('XADD', KEYS[2], '*', unpack(cmsgpack.unpack(entry)))
  redis.call('ZREM', KEYS[1], entry)
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return first[2] and math.max(0, first[2] - now) or -1
