-- Remove one view's rows that are older than a moment, among the keys of one step of SCAN; return the next cursor and the count.
-- ARGV: cursor, pattern, keys a step, event field, mark field, oldest moment to keep (microseconds), bytes of the join keys'
-- names, how many they are, project, the features' fields.
local call, sub, byte, read = redis.call, string.sub, string.byte, struct.unpack
local event_field, mark_field, oldest = ARGV[4], ARGV[5], tonumber(ARGV[6])

local function seconds(message)
  if byte(message, 1) ~= 8 then return 0 end
  local value, scale, at = 0, 1, 2
  repeat
    local piece = byte(message, at)
    value, scale, at = value + (piece % 128) * scale, scale * 128, at + 1
  until piece < 128
  return value >= 2 ^ 63 and value - 2 ^ 64 or value
end

-- The project stands behind the last value, without a length: the pattern also fits one whose name ends alike.
local function ours(key)
  local at = tonumber(ARGV[7]) + 1
  for _ = 1, tonumber(ARGV[8]) do
    if #key < at + 7 then return false end
    at = at + 8 + read('<I4', key, at + 4)
  end
  return sub(key, at) == ARGV[9]
end

local step = call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3], 'TYPE', 'hash')
local removed = 0
for _, key in ipairs(step[2]) do
  local held = ours(key) and call('HMGET', key, event_field, mark_field)
  if held and held[1] then
    local moment
    if held[2] and sub(held[2], 17) == held[1] then
      moment = read('<d', held[2])
    else
      moment = (seconds(held[1]) + 1) * 1000000 -- a stock writer's fraction is not read: rather keep a row than lose it
    end
    if moment < oldest then
      call('HDEL', key, event_field, mark_field, unpack(ARGV, 10))
      removed = removed + 1
    end
  end
end
return {step[1], removed}
