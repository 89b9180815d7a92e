-- Marks items of a job as cancelled for the workers that take them, and tells those that run them now.
-- KEYS[1] cancelled (hash)
-- KEYS[2] control (stream)
-- KEYS[3] job (hash)
-- KEYS[4] events (stream)
-- ARGV[1] job; keys 3 and 4 are there if it is a named one
-- ARGV[2] span of all cancelled items of the job; '@' and a run: later runs are not concerned
-- ARGV[3] lifetime of the first two keys (ms)
-- ARGV[4] how often the job had been run again when this was asked; '' cancels every run
-- ARGV[5] the sealed event for those who follow a named job; '' for others
-- ARGV[6..] the control message
-- Returns 1, or 0 if the job was run again since: what runs now is not what was to be cancelled
if ARGV[4] ~= '' and redis.call('HGET', KEYS[3], 'run') ~= ARGV[4] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
-- Who has read it all sees by this number that it has changed.
redis.call('HINCRBY', KEYS[1], '#', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', '1000', '*', unpack(ARGV, 6))
redis.call('PEXPIRE', KEYS[2], ARGV[3])
if ARGV[5] ~= '' then
  redis.call('XADD', KEYS[4], 'NOMKSTREAM', '*', 'event', ARGV[5])
end
return 1
