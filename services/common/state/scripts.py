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

# KEYS: hash. ARGV: version, payload, expected version. Returns -1 if stored, else the one found,
# 0 for what is no number. Sent again after an answer that was lost it meets what it stored itself.
SAVE_VERSION = """
local current = tonumber(redis.call('HGET', KEYS[1], 'version') or '0') or 0
if tonumber(ARGV[3]) ~= current then
  local is_ours = current == tonumber(ARGV[1]) and redis.call('HGET', KEYS[1], 'payload') == ARGV[2]
  return is_ours and -1 or current
end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'payload', ARGV[2])
return -1
"""

# KEYS: what is wrong. ARGV: where to keep it, for how long in ms.
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

# KEYS: info hash, order, history. ARGV: policy id, info, '1' if there is a snapshot, snapshot,
# snapshot key prefix, most policies, ids of policies that are needed. Drops the oldest policies
# beyond the bound, but neither those nor the active one nor the one before it. A place in the order
# that is no sensible number is given anew, to all. Returns the number dropped.
PUT_POLICY = """
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  local top = tonumber(redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2] or '0') or 0
  if not (top > -1 and top < 9007199254740991) then
    top = 0
    for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
      top = top + 1
      redis.call('ZADD', KEYS[2], top, id)
    end
  end
  redis.call('ZADD', KEYS[2], top + 1, ARGV[1])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if ARGV[3] == '1' then redis.call('SET', ARGV[5] .. ARGV[1], ARGV[4]) end
local excess = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[6])
if excess <= 0 then return 0 end
local keep = {[ARGV[1]] = true}
for index = 7, #ARGV do keep[ARGV[index]] = true end
for _, entry in ipairs(redis.call('LRANGE', KEYS[3], -2, -1)) do
  keep[string.match(entry, '^%d+ (.*)$') or ''] = true
end
local dropped = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, excess + #ARGV - 4)) do
  if dropped < excess and not keep[id] then
    redis.call('ZREM', KEYS[2], id)
    redis.call('HDEL', KEYS[1], id)
    redis.call('DEL', ARGV[5] .. id)
    dropped = dropped + 1
  end
end
return dropped
"""

# KEYS: info hash, order, snapshot. ARGV: policy id, where to keep the snapshot, for how long in ms.
DROP_POLICY = """
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('RENAME', KEYS[3], ARGV[2])
  redis.call('PEXPIRE', ARGV[2], ARGV[3])
end
"""

# KEYS: rollout, info hash. ARGV: what is to be stored of the rollout, what it takes the place of
# ('' for nothing), id of a policy or '', what is known of that policy from then on. A policy that
# is not there is not made. Returns 1 if the rollout is stored now, 0 if another one stands there.
PUT_ROLLOUT = """
local found = redis.call('GET', KEYS[1]) or ''
if found ~= ARGV[1] then
  if found ~= ARGV[2] then return 0 end
  redis.call('SET', KEYS[1], ARGV[1])
end
if ARGV[3] ~= '' and redis.call('HEXISTS', KEYS[2], ARGV[3]) == 1 then
  redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
end
return 1
"""

# KEYS: history, rollout. ARGV: policy id, expected activation or '', number that the new one must
# be above, most entries of the history, largest number, and what is stored of the rollout if the
# activation gets a certain number: that number, it, what it takes the place of; '' for nothing.
# The present number is that of the newest entry that has a sensible one; after the largest number
# they start anew. Returns {1, number of the activation}, or {0, number found} on a mismatch.
ACTIVATE = """
local rollout = redis.call('GET', KEYS[2]) or ''
local largest = tonumber(ARGV[5])
local current = 0
local entries = redis.call('LRANGE', KEYS[1], -tonumber(ARGV[4]), -1)
for index = #entries, 1, -1 do
  local number = tonumber(string.match(entries[index], '^(%d+) ') or '0')
  if number > 0 and number <= largest then
    current = number
    break
  end
end
if ARGV[2] ~= '' and tonumber(ARGV[2]) ~= current then return {0, current} end
local activation = math.max(current, tonumber(ARGV[3])) + 1
if activation > largest then activation = 1 end
redis.call('RPUSH', KEYS[1], string.format('%.0f', activation) .. ' ' .. ARGV[1])
redis.call('LTRIM', KEYS[1], -tonumber(ARGV[4]), -1)
if ARGV[7] ~= '' and tonumber(ARGV[6]) == activation and rollout == ARGV[8] then
  redis.call('SET', KEYS[2], ARGV[7])
end
return {1, activation}
"""
