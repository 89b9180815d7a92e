-- Delivers waiting tasks to a worker, the most urgent lane first.
-- KEYS[1] cancelled (hash)
-- KEYS[2..] lanes (streams), most urgent first
-- ARGV[1] consumer
-- ARGV[2] most entries to deliver
-- Returns whether anything is cancelled, then for each entry: index of its lane (from 0), id, fields
local left = tonumber(ARGV[2])
local taken = {redis.call('EXISTS', KEYS[1])}
for k = 2, #KEYS do
  if left <= 0 then
    break
  end
  local reply = redis.call('XREADGROUP', 'GROUP', 'workers', ARGV[1],
                           'COUNT', left, 'STREAMS', KEYS[k], '>')
  for _, entry in ipairs(reply and reply[1][2] or {}) do
    taken[#taken + 1] = {k - 2, entry[1], entry[2]}
    left = left - 1
  end
end
return taken
