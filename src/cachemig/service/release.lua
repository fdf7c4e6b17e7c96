-- Gives a lease back; where the loader found nothing, that is remembered for a short time.
-- KEYS: lease key, negative key. ARGV: token, milliseconds of the negative entry ('0' for none).
-- Returns 1; 0 where the lease was taken away meanwhile, by an invalidation or a write: then nothing is remembered.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('DEL', KEYS[1])
if ARGV[2] ~= '0' then
    redis.call('SET', KEYS[2], '', 'PX', ARGV[2])
end
return 1
