"""What the registry in Redis does in one step there: Lua scripts. Hashes and locations are 8 bytes each, packed."""

_FIELDS = """
local fields = {}
for i = 1, #ARGV[1] / 8 do fields[i] = string.sub(ARGV[1], i * 8 - 7, i * 8) end
"""
LOOKUP = (
    _FIELDS
    + """
local none = string.rep('\\255', 8)
local found = redis.call('HMGET', KEYS[1], unpack(fields))
for i = 1, #fields do
  local v = found[i]
  if v and #v == 8 then found[i] = v .. none elseif not v or #v ~= 16 then found[i] = none .. none end
end
return table.concat(found)
"""
)
# ARGV[2]: a location per hash. A third base with the same chunk is left out: two are enough for the vote.
INSERT = (
    _FIELDS
    + """
local zero, out = string.rep('\\0', 8), {}
local known = redis.call('HMGET', KEYS[1], unpack(fields))
for i = 1, #fields do
  local location, v = string.sub(ARGV[2], i * 8 - 7, i * 8), known[i]
  if fields[i] ~= zero then
    if not v then
      redis.call('HSET', KEYS[1], fields[i], location)
    elseif #v ~= 8 and #v ~= 16 then
      redis.call('HSET', KEYS[1], fields[i], location)
    elseif #v == 8 and string.sub(v, 7, 8) ~= string.sub(location, 7, 8) then
      redis.call('HSET', KEYS[1], fields[i], v .. location)
    end
  end
end
return #fields
"""
)
# ARGV[2]: the slot whose locations go.
REMOVE = (
    _FIELDS
    + """
local known = redis.call('HMGET', KEYS[1], unpack(fields))
for i = 1, #fields do
  local v, rest = known[i], ''
  if v then
    for j = 1, math.min(#v, 16), 8 do
      if string.sub(v, j + 6, j + 7) ~= ARGV[2] then rest = rest .. string.sub(v, j, j + 7) end
    end
    if rest == '' then
      redis.call('HDEL', KEYS[1], fields[i])
    elseif #rest < #v then
      redis.call('HSET', KEYS[1], fields[i], rest)
    end
  end
end
return #fields
"""
)
# KEYS: slots, slot_of, next. ARGV[1]: base id. The base's slot, taken for it if it has none; -1 when all are taken.
TAKE_SLOT = """
local held = redis.call('HGET', KEYS[2], ARGV[1])
if held then return struct.unpack('<I2', held) end
local first = tonumber(redis.call('GET', KEYS[3]) or '0')
for i = 0, 65534 do
  local slot = (first + i) % 65535
  local field = struct.pack('<I2', slot)
  if redis.call('HSETNX', KEYS[1], field, ARGV[1]) == 1 then
    redis.call('HSET', KEYS[2], ARGV[1], field)
    redis.call('SET', KEYS[3], (slot + 1) % 65535)
    return slot
  end
end
return -1
"""

# KEYS[1]: a hash. ARGV: field, value that must be there, the value to put in its place. 1 when it was.
REPLACE = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""

# KEYS[1]: a lease. ARGV: whose, milliseconds. 1 when there was none; another controller's is left as it is.
RENEW = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return held and 0 or 1
"""
