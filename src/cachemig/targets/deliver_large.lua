-- Delivers one large value that was SET under a temporary key before: Lua need not copy it. The temporary key belongs
-- to this delivery alone; shared by two senders, the bytes of one could go in under the version of the other.
-- KEYS: the marker of this migration, version key, value key, temporary key.
-- ARGV: version, expiry (Unix milliseconds, '0' for none).
-- Returns { 1 } written, { 0 } refused as older, { 2 } refused because a later epoch has begun, { -1 } the temporary
-- key is gone (expired or evicted: repeat). The rules are those of deliver.lua.
local version_key, value_key, temporary_key = KEYS[2], KEYS[3], KEYS[4]
local version, expiry = ARGV[1], ARGV[2]
local epoch = tonumber(string.match(redis.call('GET', KEYS[1]) or '', '^(%d+):')) or -1
local refused = nil
if epoch > math.floor(tonumber(version) / 2 ^ 40) then
    refused = 2
elseif tonumber(redis.call('GET', version_key) or '0') > tonumber(version) then
    refused = 0
end
if refused then
    redis.call('DEL', temporary_key)
    return { refused }
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
