-- A job has few of its chunks in its lane: as many as there are workers. The others wait, in order,
-- in its backlog for that lane. `placed` has the ids of those that are in the lane. A retry, or the second of two
-- halves, is not among them, and no other chunk follows it.
-- `at` says where a job's chunks are: its keys lane, backlog, placed, backlogs, workers; and the job.

-- Adds a chunk to a lane, as one of those that others follow.
local function place(at, lane, fields)
  redis.call('HSET', at.placed, redis.call('XADD', lane, '*', unpack(fields)), '')
end

-- Returns how many chunks there is room for, if each worker is to have `n` of them.
local function room(at, n)
  return math.max(1, redis.call('HLEN', at.workers)) * n - redis.call('HLEN', at.placed)
end

-- Adds a chunk behind all others of its job.
local function enqueue(at, fields)
  at.is_full = at.is_full or redis.call('LLEN', at.backlog) > 0 or room(at, 1) <= 0
  if not at.is_full then
    place(at, at.lane, fields)
    redis.call('EXPIRE', at.placed, 2592000)
  elseif redis.call('RPUSH', at.backlog, cmsgpack.pack(fields)) == 1 then
    redis.call('HSET', at.backlogs, at.job, '')
    for _, key in ipairs({at.backlog, at.backlogs}) do redis.call('EXPIRE', key, 2592000) end
  end
end

-- Moves the next `n` chunks of a job from its backlog into its lane.
local function advance(at, n)
  local chunks = n > 0 and redis.call('LPOP', at.backlog, n) or {}
  for _, chunk in ipairs(chunks) do
    local known, fields = pcall(cmsgpack.unpack, chunk)  -- others may have written anything
    if known and type(fields) == 'table' and #fields == 8 then pcall(place, at, at.lane, fields) end
  end
  for _, key in ipairs({at.backlog, at.placed}) do redis.call('EXPIRE', key, 2592000) end
  if #chunks < n then redis.call('HDEL', at.backlogs, at.job) end
end
