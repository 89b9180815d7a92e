-- Gives leases of a limit back, or no longer waits for them, and grants leases to those that wait.
-- KEYS[1] limit (hash)
-- KEYS[2] leases (hash)
-- KEYS[3] waiting (sorted set)
-- KEYS[4] workers (hash)
-- ARGV[1] worker: if no leases follow, it gives all of its leases back
-- ARGV[2..] the leases
-- Returns how many of them were granted
-- @include limits
local leases, n = {}, 0
for k = 2, #ARGV do leases[k - 1] = ARGV[k] end -- unpack takes 8000 at most
if #ARGV == 1 then
  local function add(lease)
    if string.match(lease, '^(%S+) ') == ARGV[1] then table.insert(leases, lease) end
  end
  local held = redis.call('HGETALL', KEYS[2])
  for k = 1, #held, 2 do add(held[k]) end
  for _, lease in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do add(lease) end
end
for _, lease in ipairs(leases) do
  n = n + redis.call('HDEL', KEYS[2], lease)
  redis.call('ZREM', KEYS[3], lease)
end
grant({limit = KEYS[1], leases = KEYS[2], waiting = KEYS[3], workers = KEYS[4]})
return n
