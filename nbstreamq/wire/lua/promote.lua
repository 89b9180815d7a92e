-- Moves the delayed tasks that are due into their lane.
-- KEYS[1] delayed (sorted set)
-- KEYS[2] lane (stream)
-- KEYS[3] dead (stream)
-- KEYS[4] refused (hash)
-- ARGV[1] lifetime of the dead stream and of the counts (ms)
-- ARGV[2] source: the name of the delayed set, for people
-- Returns milliseconds until the next one is due; -1 if there is none
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Somebody else may have written anything; it must not hold up the next entries.
local function fields_of(entry)
  local known, fields = pcall(cmsgpack.unpack, entry)
  if not known or type(fields) ~= 'table' or #fields % 2 == 1 or #fields == 0 or #fields > 100 then
    return nil
  end
  for k = 1, #fields do -- ipairs would end at a hole
    if type(fields[k]) ~= 'string' then
      return nil
    end
  end
  return fields
end

for _, entry in ipairs(redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, 1000)) do
  local fields = fields_of(entry)
  if fields then
    redis.call('XADD', KEYS[2], '*', unpack(fields))
  else
    redis.pcall('XADD', KEYS[3], 'MAXLEN', '~', '1000', '*', 'refused', 'A delayed entry is no task.',
      'from', ARGV[2], 'value', string.sub(entry, 1, 65536))
    redis.pcall('HINCRBY', KEYS[4], 'task', 1)
    redis.call('PEXPIRE', KEYS[3], ARGV[1])
    redis.call('PEXPIRE', KEYS[4], ARGV[1])
  end
  redis.call('ZREM', KEYS[1], entry)
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return first[2] and math.max(0, first[2] - now) or -1
