-- A write in redis-only and later, where Redis holds the only copy: value, expiry and version in one step, or nothing.
-- KEYS: the marker of this migration ('<epoch>:<random>'), version key, value key, lease key, negative key, temporary key;
--       7 the mark that takes this write back; 8 and more: marks that take back earlier writes of the same client, which
--       had no answer and may still be on their way.
-- ARGV: 1 the writer's epoch, or '' where no control schema is left: then no version is kept;
--       2 expiry (Unix milliseconds, '0' for none); 3 'set', 'rename' (a large value, SET under the temporary key before)
--       or 'remove'; 4 value; 5 the version that is to be there still, or '' for any; 6 the lease that is to be held
--       still, or '' for any; 7 the whole marker that is to be there still, or none for any.
-- Returns { 1, version } written; { 0, version held, marker } refused: another version or marker than expected, or the
-- lease is lost;
-- { 2, epoch } refused: a later epoch has begun, so writes go elsewhere by now; { 3, 0 } refused: taken back;
-- { -1, 0 } the temporary key is gone.
-- Version: one more than the one that is held, at least the base of the epoch and the milliseconds since 2020 (below 2^40
-- until 2054): so a version is not given twice, also where Redis has lost what it held. And a late write of an earlier epoch, and
-- whatever is still delivered from the frozen column, loses against it. The marker may be of the frozen column's epoch, so
-- that the last changes can be delivered; a Redis that was flushed has none, and writes are not to fail for that.
local version_key, value_key, lease_key, negative_key, temporary_key = KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local epoch, expiry, what, value, expected, token = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local held = tonumber(redis.call('GET', version_key) or '0')
local planted = redis.call('GET', KEYS[1]) or ''
local refused = nil
if redis.call('EXISTS', KEYS[7]) == 1 then
    refused = { 3, 0 }
end
if not refused and epoch ~= '' then
    local marker = tonumber(string.match(planted, '^(%d+):')) or -1
    if marker > tonumber(epoch) then
        refused = { 2, marker }
    end
end
if not refused and ((expected ~= '' and held ~= tonumber(expected)) or (ARGV[7] and ARGV[7] ~= planted)
                    or (token ~= '' and redis.call('GET', lease_key) ~= token)) then
    refused = { 0, held, planted }
end
if refused then
    if what == 'rename' then
        redis.call('DEL', temporary_key)
    end
    return refused
end
if what == 'rename' and redis.call('EXISTS', temporary_key) == 0 then
    return { -1, 0 }
end
-- The value first: a server that is full refuses a script's first write, and none after it.
if what == 'remove' then
    redis.call('DEL', value_key)
elseif what == 'rename' then
    redis.call('RENAME', temporary_key, value_key)
    if expiry == '0' then
        redis.call('PERSIST', value_key)
    else
        redis.call('PEXPIREAT', value_key, expiry)
    end
elseif expiry == '0' then
    redis.call('SET', value_key, value)
else
    redis.call('SET', value_key, value, 'PXAT', expiry)
end
local version = 0
if epoch ~= '' then
    local time = redis.call('TIME')
    local milliseconds = (tonumber(time[1]) - 1577836800) * 1000 + math.floor(tonumber(time[2]) / 1000)
    version = math.max(held + 1, tonumber(epoch) * 2 ^ 40 + milliseconds)
    -- Not tostring(): that writes large numbers as 1.0995116277760e+12.
    redis.call('SET', version_key, string.format('%.0f', version))
end
redis.call('DEL', lease_key, negative_key)
for i = 8, #KEYS do
    redis.call('SET', KEYS[i], '', 'PX', 600000)
end
return { 1, version }
