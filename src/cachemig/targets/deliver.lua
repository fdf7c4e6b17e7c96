-- Delivers the states of one or more keys; an older state than the one held changes nothing.
-- KEYS: the marker of this migration ('<epoch>:<random>'), then two per entry: version key, value key.
-- ARGV, four per entry: version, expiry (Unix milliseconds, '0' for none), 'set' or 'remove', value.
-- Returns per entry: 1 written, 0 refused as older, 2 refused because a later epoch has begun. The last is no delivery:
-- its sender's snapshot may be of a state that was lost, and what stands here may not be newer.
-- Versions are compared as numbers ('9' > '10' as strings); they are below 2^53, so doubles hold them exactly.
-- Version 0 (never changed) leaves no version key: that none is there is the proof that nothing newer was written.
local epoch = tonumber(string.match(redis.call('GET', KEYS[1]) or '', '^(%d+):')) or -1
local outcome = {}
for i = 1, (#KEYS - 1) / 2 do
    local version_key, value_key = KEYS[2 * i], KEYS[2 * i + 1]
    local version, expiry, what, value = ARGV[4 * i - 3], ARGV[4 * i - 2], ARGV[4 * i - 1], ARGV[4 * i]
    if epoch > math.floor(tonumber(version) / 2 ^ 40) then
        outcome[i] = 2
    elseif tonumber(redis.call('GET', version_key) or '0') > tonumber(version) then
        outcome[i] = 0
    else
        -- The value first: a server that is full refuses it before anything is written, and nothing once a script
        -- has written; so value and version cannot part.
        if what == 'remove' then
            redis.call('DEL', value_key)
        elseif expiry == '0' then
            redis.call('SET', value_key, value)
        else
            redis.call('SET', value_key, value, 'PXAT', expiry)
        end
        if tonumber(version) > 0 then
            redis.call('SET', version_key, version)
        end
        outcome[i] = 1
    end
end
return outcome
