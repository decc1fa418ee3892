-- Write rows of one view, each one only if it is not older than what the key holds; return how many were written.
-- KEYS: entity keys, none of them twice. ARGV: event field, mark field, seconds to live or 0, number of features, their fields;
-- then for every key: event time (protobuf), stamp (two doubles: event and created microseconds), values.
-- The mark is the stamp and the event time it belongs to: a stock writer moves the event time and leaves the mark.
local event_field, mark_field, ttl, features = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local call, sub, byte, read = redis.call, string.sub, string.byte, struct.unpack

local function micros(message)
  local at, found = 1, {0, 0}
  while at <= #message do
    local tag, value, scale = byte(message, at), 0, 1
    at = at + 1
    repeat
      local piece = byte(message, at)
      value, scale, at = value + (piece % 128) * scale, scale * 128, at + 1
    until piece < 128
    found[tag == 8 and 1 or 2] = value >= 2 ^ 63 and value - 2 ^ 64 or value
  end
  return found[1] * 1000000 + math.floor(found[2] / 1000)
end

local fields = {event_field, '', mark_field, ''}
for n = 1, features do fields[3 + 2 * n] = ARGV[4 + n] end
local at, written = 4 + features, 0
local nothing_held = call('EXISTS', unpack(KEYS)) == 0
for row = 1, #KEYS do
  local event, stamp, newer = ARGV[at + 1], ARGV[at + 2], true
  local held = nothing_held and {false} or call('HMGET', KEYS[row], event_field, mark_field)
  if held[1] then
    local moment, created = read('<dd', stamp)
    if held[2] and sub(held[2], 17) == held[1] then
      local old_moment, old_created = read('<dd', held[2])
      newer = moment > old_moment or (moment == old_moment and created >= old_created)
    else
      newer = moment >= micros(held[1])
    end
  end
  if newer then
    fields[2], fields[4] = event, stamp .. event
    for n = 1, features do fields[4 + 2 * n] = ARGV[at + 2 + n] end
    call('HSET', KEYS[row], unpack(fields))
    if ttl > 0 then call('EXPIRE', KEYS[row], ttl) end
    written = written + 1
  end
  at = at + 2 + features
end
return written
