-- Marks items of a job as cancelled for whoever takes them, and tells those who run them now.
-- KEYS[1] cancelled (hash)
-- KEYS[2] control (stream)
-- ARGV[1] job
-- ARGV[2] span of all cancelled items of the job
-- ARGV[3] lifetime of both keys (ms)
-- ARGV[4..] the control message
-- Returns 1
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
-- Who has read it all sees by this number that it has changed.
redis.call('HINCRBY', KEYS[1], '#', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', '1000', '*', unpack(ARGV, 4))
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
