-- A limit allows so many leases at a time, and so many starts a second. Those that wait for one are in `waiting`,
-- in the order in which they asked. A lease is "<worker> <number> <list>": its worker put there the list from which
-- it learns what has become of it.
-- `at` has the keys limit, leases, waiting, workers; and if the caller asks for leases: its list `own`, the leases
-- `asked`, and `notes`, which get what is for that list.

-- Tells a worker that it has a lease (0), or after how many milliseconds it may have one.
local function tell(at, lease, list, wait)
  local note = string.format('%d %s', wait, lease)
  if list == at.own then
    table.insert(at.notes, note)
  else
    redis.call('RPUSH', list, note)
    redis.call('EXPIRE', list, 604800)
  end
end

-- Gives leases to those that have waited longest, as far as the limit allows.
local function grant(at)
  local function get(field) return redis.call('HGET', at.limit, field) or '' end
  local most, rate, next, told = tonumber(get('concurrent')), tonumber(get('rate')), tonumber(get('next')) or 0, get('told')
  local time, gap = redis.call('TIME'), rate and 1000000 / rate
  local now = time[1] * 1000000 + time[2]
  if gap then next = math.min(next, now + gap) end -- the rate was lower, or the server's clock went back
  local n, first = redis.call('HLEN', at.leases), redis.call('ZRANGE', at.waiting, 0, 0)[1]
  while first and not (most and n >= most) do
    local worker, list = string.match(first, '^(%S+) %d+ (%S+)$')
    if worker and redis.call('HEXISTS', at.workers, worker) == 1 then
      if gap and now < next then
        local mark = string.format('%.0f %s', next, first)
        if mark ~= told or at.asked and at.asked[first] then
          tell(at, first, list, math.ceil((next - now) / 1000))
          told = mark
        end
        break
      end
      redis.call('HSET', at.leases, first, '')
      tell(at, first, list, 0)
      -- A lease that waited for its time is granted a bit late. The next one makes up for that, up to a tenth of a
      -- second. Where nobody waited, nothing is made up for: the intervals would be too short.
      if gap then next = (told == '' and now or math.max(next, now - 100000)) + gap end
      n, told = n + 1, ''
    end -- else the worker is gone
    redis.call('ZREM', at.waiting, first)
    first = redis.call('ZRANGE', at.waiting, 0, 0)[1]
  end
  redis.call('HSET', at.limit, 'next', string.format('%.0f', next), 'told', told)
  redis.call('EXPIRE', at.limit, 2592000)
  for _, key in ipairs({at.leases, at.waiting}) do redis.call('EXPIRE', key, 604800) end
end
