-- Puts a batch of tasks into their lanes, once, however often the batch is sent.
-- KEYS[1] session (string)
-- KEYS[2] control (stream)
-- KEYS[3] workers (hash)
-- KEYS[4..] what ARGV refers to by index (from 0): lanes, delayed sets, backlogs, ...
-- ARGV[1] number of the batch
-- ARGV[2] lifetime of the session (ms)
-- ARGV[3..] for each task: lane, delayed set, '' or of a chunk: job, backlog, placed, backlogs;
--   delay (ms), number of fields and values, those
-- Returns the number of the last batch before this; if it is not smaller, nothing was written
-- @include backlog
local last = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
if tonumber(ARGV[1]) <= last then
  return last
end
local i, due, jobs = 3, false, {}

local function next_arg()
  i = i + 1
  return ARGV[i - 1]
end

local function next_key() return KEYS[4 + next_arg()] end

while i <= #ARGV do
  local lane, delayed, job, at = next_key(), next_key(), next_arg(), nil
  if job ~= '' then
    at = jobs[job] or {job = job, lane = lane, workers = KEYS[3]}
    at.backlog, at.placed, at.backlogs = next_key(), next_key(), next_key()
    jobs[job] = at
  end
  local delay, size = tonumber(next_arg()), tonumber(next_arg())
  local fields = {unpack(ARGV, i, i + size - 1)}
  if delay > 0 then
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    redis.call('ZADD', delayed, now + delay, cmsgpack.pack(fields))
    redis.call('EXPIRE', delayed, 2592000)
    due = true
  elseif at then
    enqueue(at, fields)
  else
    redis.call('XADD', lane, '*', unpack(fields))
  end
  i = i + size
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if due then
  -- Supervisors sleep until the earliest due task they know of: wake them.
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', '1000', '*', 'kind', 'due')
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
return last
