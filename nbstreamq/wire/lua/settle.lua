-- Settles delivered entries: acknowledges each and writes what follows from it, or neither.
-- The acknowledgement is the commit: a worker that is too late (its entry was requeued) writes nothing.
-- KEYS[1] control (stream)
-- KEYS[2] workers (hash)
-- KEYS[3..] what ARGV refers to by index (from 0): lanes, event streams, jobs, ...
-- ARGV[1] lifetime of an event stream (ms); that of a named job's is a week
-- ARGV[2..] for each entry: lane, id, numbers of events, of successors, of dead letters;
--   '', or of a named job: job, inputs, settled, the task's digest ('' if it goes back as it is),
--   how many items are done, failed, cancelled by this;
--   '', or of a chunk: job, how many such chunks a worker is to have, lane, backlog, placed, backlogs;
--   for each event: event stream, whose it is (session or job), '' if that is a session, sealed event;
--   for each successor: lane or delayed set, delay (ms), when ('' always, 'busy' or 'idle': only if
--   others wait in the lane, or none), number of fields and values that replace the entry's, those;
--   for each letter: dead stream, its sender's letters, function, why, where from, and as above
-- Returns for each entry 1 if it was settled by this call, 2 if it was but is a copy of what a named
--   job has settled (nothing follows), else 0
-- @include backlog
local settled, events, owners, named, advancing, i, due = {}, {}, {}, {}, {}, 2, false

local function next_arg()
  i = i + 1
  return ARGV[i - 1]
end

local function next_key() return KEYS[3 + next_arg()] end

local function live_on(key, job)  -- not if it is kept for ever
  if redis.call('PTTL', job) > 0 then redis.call('EXPIRE', key, 604800) end
end

-- Returns `fields`, and behind them those of the entry, some with another value.
local function successor(entry, fields)
  local value, first = {}, i + 1
  i = first + tonumber(ARGV[i])
  for k = first, i - 1, 2 do
    value[ARGV[k]] = ARGV[k + 1]
  end
  for k = 1, entry and #entry[2] or 0, 2 do
    local name = entry[2][k]
    fields[#fields + 1], fields[#fields + 2] = name, value[name] or entry[2][k + 1]
  end
  return fields
end

-- Keeps what failed for good: of one sender the newest 100. Its function lives as long.
local function keep(dead, letters, fn, fields)
  -- pcall: others who can write here may have spoilt these keys.
  local id = redis.pcall('XADD', dead, 'MAXLEN', '~', '1000', '*', unpack(fields))
  local n = id.err and 0 or redis.pcall('RPUSH', letters, id)
  if type(n) == 'number' and n > 100 then
    redis.pcall('XDEL', dead, redis.call('LPOP', letters))
  end
  for _, key in ipairs({dead, letters, fn}) do redis.call('EXPIRE', key, 604800) end
end

while i <= #ARGV do
  local lane, id, n_events, n_successors, n_letters =
    next_key(), next_arg(), tonumber(next_arg()), tonumber(next_arg()), tonumber(next_arg())
  local entry = n_successors + n_letters > 0 and redis.call('XRANGE', lane, id, id)[1]
  local mine = redis.call('XACK', lane, 'workers', id)
  local job_index, wanted, job = next_arg(), mine == 1, nil
  if job_index ~= '' then
    job = KEYS[3 + job_index]
    local inputs, ends, digest = next_key(), next_key(), next_arg()
    wanted = wanted and redis.call('EXISTS', job) == 1  -- otherwise it was deleted, or has expired
    if wanted and digest ~= '' and redis.call('HSET', ends, digest, '') == 0 then
      wanted, mine = false, 2
    end
    for _, what in ipairs({'done', 'failed', 'cancelled'}) do
      local n = next_arg()
      if wanted then redis.call('HINCRBY', job, what, n) end
    end
    for _, key in ipairs({job, inputs, ends}) do live_on(key, job) end
  end
  if mine > 0 then redis.call('XDEL', lane, id) end
  local of, at, was_placed = next_arg(), nil, false
  if of ~= '' then
    local enough, base, backlog = next_arg(), next_key(), next_key()
    at = advancing[backlog] or {job = of, workers = KEYS[2], n = 0}
    at.enough, at.lane, at.backlog, at.placed, at.backlogs =
      enough, base, backlog, next_key(), next_key()
    was_placed = mine > 0 and redis.call('HDEL', at.placed, id) == 1
    if mine > 0 then advancing[backlog], at.n = at, at.n + 8 end  -- not more: the next may take longer
  end
  settled[#settled + 1] = mine
  for _ = 1, n_events do
    local stream, owner, is_named, event = next_key(), next_key(), next_arg() ~= '', next_arg()
    if wanted then
      owners[stream], named[stream], events[stream] = owner, is_named, events[stream] or {}
      local list = events[stream]
      list[#list + 1], list[#list + 2] = 'event', event
    end
  end
  local busy = wanted and n_successors > 1  -- XLEN: what is delivered is there until it is settled
    and (redis.call('XLEN', lane) > redis.call('XPENDING', lane, 'workers')[1]
      or at ~= nil and redis.call('EXISTS', at.backlog) == 1)
  for _ = 1, n_successors do
    local target, delay, when = next_key(), tonumber(next_arg()), next_arg()
    local fields = successor(entry, {})
    if wanted and entry and (when == '' or (when == 'busy') == busy) then
      if delay > 0 then
        local time = redis.call('TIME')
        local now = time[1] * 1000 + math.floor(time[2] / 1000)
        redis.call('ZADD', target, now + delay, cmsgpack.pack(fields))
        redis.call('EXPIRE', target, 2592000)
        due = true
      elseif was_placed then
        place(at, target, fields)
        was_placed = false
      else
        redis.call('XADD', target, '*', unpack(fields))
      end
    end
  end
  for _ = 1, n_letters do
    local dead, letters, fn = next_key(), next_key(), next_key()
    local fields = successor(entry, {'failed', next_arg(), 'from', next_arg()})
    if wanted and entry then keep(dead, letters, fn, fields) end
  end
end
for _, at in pairs(advancing) do advance(at, math.min(at.n, room(at, at.enough))) end
for stream, list in pairs(events) do  -- if the owner is gone, nobody reads them
  for first = 1, #list, 2000 do
    local last = math.min(first + 1999, #list)
    if not redis.call('XADD', stream, 'NOMKSTREAM', '*', unpack(list, first, last))
        and redis.call('EXISTS', owners[stream]) == 1 then
      redis.call('XADD', stream, '*', unpack(list, first, last))
    end
  end
  if named[stream] then live_on(stream, owners[stream])
  else redis.call('PEXPIRE', stream, ARGV[1]) end
end
if due then
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', '1000', '*', 'kind', 'due')
  redis.call('EXPIRE', KEYS[1], 604800)
end
return settled
