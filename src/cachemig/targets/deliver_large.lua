-- Delivers one large value that was SET under a temporary key before: Lua need not copy it.
-- KEYS: version key, value key, temporary key. ARGV: version, expiry (Unix milliseconds, '0' for none).
-- Returns { 1 } written, { 0 } refused as older, { -1 } the temporary key is gone (expired or evicted: repeat).
local version_key, value_key, temporary_key = KEYS[1], KEYS[2], KEYS[3]
local version, expiry = ARGV[1], ARGV[2]
if tonumber(redis.call('GET', version_key) or '0') > tonumber(version) then
    redis.call('DEL', temporary_key)
    return { 0 }
end
if redis.call('EXISTS', temporary_key) == 0 then
    return { -1 }
end
redis.call('RENAME', temporary_key, value_key)
if expiry == '0' then
    redis.call('PERSIST', value_key)
else
    redis.call('PEXPIREAT', value_key, expiry)
end
if tonumber(version) > 0 then
    redis.call('SET', version_key, version)
end
return { 1 }
