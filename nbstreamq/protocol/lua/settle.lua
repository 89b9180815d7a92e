-- Settles delivered entries: acknowledges each and writes what follows from it, or neither.
-- The acknowledgement is the commit: who was too late (its entry was reaped) writes nothing.
-- KEYS[1] control (stream)
-- KEYS[2..] whatever ARGV refers to by index (from 0): lanes, delayed sets, event streams, jobs
-- ARGV[1] lifetime of an event stream (ms); that of a named job's is a week
-- ARGV[2..] for each entry: lane, id, number of events, number of successors;
--   '', or of a named job: job, inputs, how many items are done, failed, cancelled by this;
--   for each event: event stream, the sealed event;
--   for each successor: lane or delayed set, delay (ms), when ('' always, 'busy' or 'idle': only if
--   others wait in the lane, or none), number of fields and values that replace the entry's, those
-- Returns for each entry 1 if it was settled by this call, else 0
local settled, events, named, i, due = {}, {}, {}, 2, false

local function next_arg()
  i = i + 1
  return ARGV[i - 1]
end

local function live_on(key, job)
  if redis.call('PTTL', job) > 0 then  -- not if it is kept for ever
    redis.call('EXPIRE', key, 604800)
  end
end

local function next_fields()
  local first = i + 1
  i = first + tonumber(ARGV[i])
  return first, i - 1
end

-- Counts what a named job's entry ended in; false if the job was deleted, or has expired.
local function count(job, inputs, done, failed, cancelled)
  if redis.call('EXISTS', job) == 0 then
    return false
  end
  redis.call('HINCRBY', job, 'done', done)
  redis.call('HINCRBY', job, 'failed', failed)
  redis.call('HINCRBY', job, 'cancelled', cancelled)
  live_on(job, job)
  live_on(inputs, job)
  return true
end

local function waiting(lane)
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', lane)) do
    for k = 1, #group, 2 do
      if group[k] == 'last-delivered-id' then
        return #redis.call('XRANGE', lane, '(' .. group[k + 1], '+', 'COUNT', 1) > 0
      end
    end
  end
end

local function successor(entry, first, last)
  local value = {}
  for k = first, last, 2 do
    value[ARGV[k]] = ARGV[k + 1]
  end
  local fields = {}
  for k = 1, #entry, 2 do
    fields[k], fields[k + 1] = entry[k], value[entry[k]] or entry[k + 1]
  end
  return fields
end

while i <= #ARGV do
  local lane, id, n_events, n_successors =
    KEYS[2 + next_arg()], next_arg(), tonumber(next_arg()), tonumber(next_arg())
  local at, job, ended = next_arg(), nil, nil
  if at ~= '' then
    job, ended = KEYS[2 + at], {KEYS[2 + next_arg()], next_arg(), next_arg(), next_arg()}
  end
  local entry = n_successors > 0 and redis.call('XRANGE', lane, id, id)[1]
  local mine = redis.call('XACK', lane, 'workers', id)
  local wanted = mine == 1 and (not job or count(job, unpack(ended)))
  local busy = mine == 1 and n_successors > 1 and waiting(lane)
  settled[#settled + 1] = mine
  if mine == 1 then
    redis.call('XDEL', lane, id)
  end
  for _ = 1, n_events do
    local stream, event = KEYS[2 + next_arg()], next_arg()
    if wanted then
      named[stream] = job
      local list = events[stream] or {}
      list[#list + 1], list[#list + 2] = 'event', event
      events[stream] = list
    end
  end
  for _ = 1, n_successors do
    local target, delay, when = KEYS[2 + next_arg()], tonumber(next_arg()), next_arg()
    local first, last = next_fields()
    if wanted and entry and (when == '' or (when == 'busy') == busy) then
      local fields = successor(entry[2], first, last)
      if delay > 0 then
        local time = redis.call('TIME')
        local at = time[1] * 1000 + math.floor(time[2] / 1000) + delay
        redis.call('ZADD', target, at, cmsgpack.pack(fields))
        due = true
      else
        redis.call('XADD', target, '*', unpack(fields))
      end
    end
  end
end
for stream, list in pairs(events) do
  for first = 1, #list, 2000 do
    redis.call('XADD', stream, '*', unpack(list, first, math.min(first + 1999, #list)))
  end
  if named[stream] then
    live_on(stream, named[stream])
  else
    redis.call('PEXPIRE', stream, ARGV[1])
  end
end
if due then
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', '1000', '*', 'kind', 'due')
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return settled
