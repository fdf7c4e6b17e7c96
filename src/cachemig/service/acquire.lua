-- Whoever is to load a key asks for its lease.
-- KEYS: lease key, negative key, version key, value key. ARGV: token, milliseconds.
-- Returns { status, version held, 1 where a value is held }; status: 1 the lease is ours; 0 another one has it;
-- 2 the loader found nothing a short time ago.
local held = { tonumber(redis.call('GET', KEYS[3]) or '0'), redis.call('EXISTS', KEYS[4]) }
if held[2] == 0 and redis.call('EXISTS', KEYS[2]) == 1 then
    return { 2, held[1], held[2] }
end
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
    return { 1, held[1], held[2] }
end
return { 0, held[1], held[2] }
