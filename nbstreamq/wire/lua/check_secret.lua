-- Tells whether a process has the secret of the queue. A process with a newer one replaces it.
-- KEYS[1] meta (hash)
-- ARGV[1] whether to write: 1, or 0 to look only
-- ARGV[2] fingerprint of the secret that it signs with
-- ARGV[3..] fingerprints of others that it accepts
-- Returns 1, or 0 if the queue has another secret
local known = redis.call('HGET', KEYS[1], 'secret')
local write = ARGV[1] == '1'
if not known then
  if write then
    redis.call('HSET', KEYS[1], 'secret', ARGV[2])
    redis.call('EXPIRE', KEYS[1], 2592000)
  end
  return 1
end
for k = 2, #ARGV do
  if known == ARGV[k] then
    -- Never go back to an old secret: a process that still signs with it is late.
    if write and k > 2 and redis.call('HEXISTS', KEYS[1], ARGV[2]) == 0 then
      redis.call('HSET', KEYS[1], 'secret', ARGV[2], known, 'given up')
    end
    return 1
  end
end
return 0
