-- Moves chunks of a job from its backlog into its lane, until it has one there for each worker.
-- KEYS[1] lane (stream)
-- KEYS[2] backlog (list)
-- KEYS[3] placed (hash)
-- KEYS[4] backlogs (hash)
-- KEYS[5] workers (hash)
-- ARGV[1] job
-- ARGV[2] id of an entry that has left the lane without being settled; '' for none
-- Returns how many chunks there was room for
-- @include backlog
local at = {
  lane = KEYS[1], backlog = KEYS[2], placed = KEYS[3], backlogs = KEYS[4], workers = KEYS[5],
  job = ARGV[1],
}
redis.call('HDEL', at.placed, ARGV[2])
local n = room(at, 1)
advance(at, n)
return n
