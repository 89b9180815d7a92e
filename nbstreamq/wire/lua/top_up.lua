-- Moves chunks of a job from its backlog into its lane, until it has so many there for each worker.
-- KEYS[1] lane (stream)
-- KEYS[2] backlog (list)
-- KEYS[3] placed (hash)
-- KEYS[4] backlogs (hash)
-- KEYS[5] workers (hash)
-- KEYS[6..] where else its chunks may be: the lanes of homes (streams)
-- ARGV[1] job
-- ARGV[2] id of an entry that has left the lane without being settled; '' for none
-- ARGV[3] how many chunks each worker is to have
-- Returns how many chunks there was room for
-- @include backlog
local at = {
  lane = KEYS[1], backlog = KEYS[2], placed = KEYS[3], backlogs = KEYS[4], workers = KEYS[5],
  job = ARGV[1],
}
redis.call('HDEL', at.placed, ARGV[2])
local n_there = redis.call('XLEN', at.lane)
for k = 6, #KEYS do n_there = n_there + redis.call('XLEN', KEYS[k]) end
-- Somebody else may have deleted chunks from a lane: no other chunk would ever follow them.
if n_there == 0 then redis.call('DEL', at.placed) end
local n = room(at, ARGV[3])
advance(at, n)
redis.call('EXPIRE', at.backlogs, 2592000)
return n
