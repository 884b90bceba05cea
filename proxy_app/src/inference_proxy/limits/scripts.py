"""Scripts that run atomically in the store: between two commands, another worker could take the same.

They count as local_store.py does. Time is the store's, so workers' clocks need not agree.
"""

from inference_proxy.limits.local_store import PLACE_WAIT_MS
from inference_proxy.limits.store import SLOT_MS, SLOTS

# On a line of its own, because the tests replace the clock.
NOW = "local time = redis.call('TIME'); local now = time[1] * 1000 + math.floor(time[2] / 1000)"

# KEYS: a counter per claim. ARGV: lease, its milliseconds, then kind, limit, cost and end of each claim.
# Returns granted (0 or 1) and slot, then used, wait_ms and reset_ms of each claim.
RESERVE = f"""
{NOW}
local slot = math.floor(now / {SLOT_MS})
local lease, lease_ms = ARGV[1], tonumber(ARGV[2])

local function look(key, kind, limit, cost, ends)
  if kind == 'places' then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    local used = redis.call('ZCARD', key)
    return used, used + cost > limit and {PLACE_WAIT_MS} or 0, 0
  end
  if kind == 'period' then
    local used, rest = tonumber(redis.call('GET', key) or 0), math.max(ends - now, 1)
    return used, used + cost > limit and rest or 0, rest
  end
  local all, slots, used = redis.call('HGETALL', key), {{}}, 0
  for i = 1, #all, 2 do
    local known, taken = tonumber(all[i]), tonumber(all[i + 1])
    if known < slot - {SLOTS} then
      redis.call('HDEL', key, all[i])
    elseif taken > 0 then
      used = used + taken
      slots[#slots + 1] = {{known, taken}}
    end
  end
  table.sort(slots, function(a, b) return a[1] < b[1] end)
  local over, wait, reset = used + cost - limit, 0, 0
  for _, entry in ipairs(slots) do
    reset = (entry[1] + {SLOTS} + 1) * {SLOT_MS} - now
    if over > 0 then
      wait, over = reset, over - entry[2]
    end
  end
  if wait == 0 and over > 0 then
    wait = {(SLOTS + 1) * SLOT_MS}
  end
  return used, wait, reset
end

local function take(key, kind, cost, ends)
  if kind == 'places' then
    redis.call('ZADD', key, now + lease_ms, lease)
    redis.call('PEXPIRE', key, lease_ms)
  elseif kind == 'period' then
    redis.call('INCRBY', key, cost)
    redis.call('PEXPIREAT', key, ends)
  else
    redis.call('HINCRBY', key, slot, cost)
    redis.call('PEXPIRE', key, {(SLOTS + 1) * SLOT_MS})
  end
end

local function claim(i)
  return ARGV[4 * i - 1], tonumber(ARGV[4 * i]), tonumber(ARGV[4 * i + 1]), tonumber(ARGV[4 * i + 2])
end

local function look_at_all()
  local answer, fits = {{0, slot}}, 1
  for i, key in ipairs(KEYS) do
    local used, wait, reset = look(key, claim(i))
    answer[3 * i], answer[3 * i + 1], answer[3 * i + 2] = used, wait, reset
    if wait > 0 then
      fits = 0
    end
  end
  return answer, fits
end

local answer, fits = look_at_all()
if fits == 1 then
  for i, key in ipairs(KEYS) do
    local kind, _, cost, ends = claim(i)
    take(key, kind, cost, ends)
  end
  answer = look_at_all()
  answer[1] = 1
  for i in ipairs(KEYS) do
    answer[3 * i + 1] = 0
  end
end
return answer
"""

# KEYS: as above. ARGV: lease, slot, then kind, change and end of each claim.
SETTLE = f"""
{NOW}
local current = math.floor(now / {SLOT_MS})
local lease, slot = ARGV[1], ARGV[2]
for i, key in ipairs(KEYS) do
  local kind, change, ends = ARGV[3 * i], tonumber(ARGV[3 * i + 1]), ARGV[3 * i + 2]
  if kind == 'places' then
    redis.call('ZREM', key, lease)
  elseif kind == 'period' then
    if redis.call('INCRBY', key, change) < 0 then
      redis.call('SET', key, 0)
    end
    redis.call('PEXPIREAT', key, ends)
  elseif change > 0 then
    redis.call('HINCRBY', key, current, change)
    redis.call('PEXPIRE', key, {(SLOTS + 1) * SLOT_MS})
  elseif redis.call('HEXISTS', key, slot) == 1 and redis.call('HINCRBY', key, slot, change) < 0 then
    redis.call('HSET', key, slot, 0)
  end
end
return 0
"""

# KEYS: one counter of places. ARGV: milliseconds, then the leases that are still in use.
RENEW = f"""
{NOW}
for i = 2, #ARGV do
  redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]), ARGV[i])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 0
"""
