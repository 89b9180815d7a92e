-- Sets aside an entry with a wrong signature: it is neither run nor delivered again.
-- KEYS[1] stream (stream)
-- KEYS[2] dead (stream)
-- KEYS[3] refused (hash)
-- KEYS[4] meta (hash)
-- ARGV[1] id
-- ARGV[2] reason
-- ARGV[3] lifetime of the dead stream and of the counts (ms)
-- ARGV[4] kind, under which it is counted
-- ARGV[5] source: the name of the stream, for people
-- ARGV[6..] fingerprints of the secrets that it was checked with
-- Returns 1 if it was set aside by this call, 0 if by another; -1 if the queue has got another secret
local secret = redis.call('HGET', KEYS[4], 'secret')
local is_ours = not secret
for k = 6, #ARGV do
  is_ours = is_ours or secret == ARGV[k]
end
if not is_ours then
  return -1
end
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
redis.call('XACK', KEYS[1], 'workers', ARGV[1])
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then
  return 0
end
local fields = entry[2]
local last = math.min(#fields, 100)
-- pcall: the writer of the entry may have spoilt these keys, too.
-- At most 100: he may have written thousands of fields, more than unpack can take.
redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', '1000', '*', 'refused', ARGV[2], 'from', ARGV[5],
  unpack(fields, 1, last))
redis.pcall('HINCRBY', KEYS[3], ARGV[4], 1)
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return 1
