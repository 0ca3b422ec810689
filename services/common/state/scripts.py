"""Lua scripts: what must be read, checked and written as one step."""

from __future__ import annotations

# What is no hash under the key of one is not ours; it is removed.
_ONLY_A_HASH = """
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', KEYS[1]) end
"""

# KEYS: hash. ARGV: version, payload, TTL in ms, largest sensible version. Returns 1 if stored. A
# version that is no number, or too large to count on from, is overwritten.
PUBLISH_STATE = f"""{_ONLY_A_HASH}
local current = tonumber(redis.call('HGET', KEYS[1], 'version') or '0') or 0
if current > tonumber(ARGV[4]) then current = 0 end
if tonumber(ARGV[1]) < current then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'payload', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""

# KEYS: hash. Returns the values and empties it.
TAKE_PEER_REPORTS = f"""{_ONLY_A_HASH}
local values = redis.call('HVALS', KEYS[1])
redis.call('DEL', KEYS[1])
return values
"""

# KEYS: hash. ARGV: version, payload, expected version. Returns -1 if stored, else the one found.
SAVE_TOPOLOGY = """
local current = tonumber(redis.call('HGET', KEYS[1], 'version') or '0')
if tonumber(ARGV[3]) ~= current then return current end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'payload', ARGV[2])
return -1
"""

# KEYS: topology. ARGV: where to keep it, for how long in ms.
SET_ASIDE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('RENAME', KEYS[1], ARGV[1])
return redis.call('PEXPIRE', ARGV[1], ARGV[2])
"""

# KEYS: lease. ARGV: owner, TTL in ms, longest TTL anybody takes. Returns 1 if the owner has it now.
# A lease without an end, or of another kind, was taken by none of us.
ACQUIRE_LEASE = """
local left = redis.call('PTTL', KEYS[1])
if redis.call('TYPE', KEYS[1]).ok ~= 'string' or left < 0 or left > tonumber(ARGV[3]) then
  redis.call('DEL', KEYS[1])
end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

# KEYS: lease. ARGV: owner. Returns 1 if released.
RELEASE_LEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""

# KEYS: info hash, order, publication counter, history. ARGV: policy id, info, '1' if there is a
# snapshot, snapshot, snapshot key prefix, most policies. Drops the oldest policies beyond the
# bound, but neither the active one nor the one before it. Returns the number dropped.
PUT_POLICY = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), ARGV[1])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if ARGV[3] == '1' then redis.call('SET', ARGV[5] .. ARGV[1], ARGV[4]) end
local excess = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[6])
if excess <= 0 then return 0 end
local keep = {}
for _, entry in ipairs(redis.call('LRANGE', KEYS[4], -2, -1)) do
  keep[string.match(entry, '^%d+ (.*)$')] = true
end
local dropped = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, excess + 1)) do
  if dropped < excess and not keep[id] and id ~= ARGV[1] then
    redis.call('ZREM', KEYS[2], id)
    redis.call('HDEL', KEYS[1], id)
    redis.call('DEL', ARGV[5] .. id)
    dropped = dropped + 1
  end
end
return dropped
"""

# KEYS: counter, history. ARGV: policy id, expected activation or '', most entries of the history.
# Returns {1, number of the activation}, or {0, number found} on a mismatch.
ACTIVATE = """
local current = tonumber(redis.call('GET', KEYS[1]) or '0')
if ARGV[2] ~= '' and tonumber(ARGV[2]) ~= current then return {0, current} end
local activation = redis.call('INCR', KEYS[1])
redis.call('RPUSH', KEYS[2], activation .. ' ' .. ARGV[1])
redis.call('LTRIM', KEYS[2], -tonumber(ARGV[3]), -1)
return {1, activation}
"""
