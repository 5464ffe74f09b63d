#!lua name=tollgate
-- version: 4
--
-- The Redis side of the ledger: what is held, charged and logged, each step atomic, many per call.
--
-- KEYS of every partition function, all with the partition's hash tag (here {p07}):
--   1 tg:{p07}:meta   hash    gen, seq, state (A active, R recovering), ver (highest base version
--                             seen), install (the deployment that owns the data), proven (how
--                             far Postgres had the older streams when this generation began)
--   2 tg:{p07}:free   hash    wallet -> nano-USD that may still be held or charged
--   3 tg:{p07}:base   hash    wallet -> what was paid in, less what Postgres took out itself
--   4 tg:{p07}:spent  hash    wallet -> charges settled here, lifetime
--   5 tg:{p07}:held   hash    wallet -> sum of the open holds; free = base - spent - held
--   6 tg:{p07}:ver    hash    wallet -> version of its base
--   7 tg:{p07}:holds  hash    call id -> "o..." an open hold, see `row_text`; once it has ended
--                             "x|generation|charge|stream id|kind", until Postgres has the end
--   8 tg:{p07}:due    zset    call id by deadline, unix ms; exactly the open holds
--   9 tg:{p07}:rates  hash    rate -> "tokens left|unix ms" of a token bucket
--  10 tg:{p07}:slots  hash    scope -> open calls
--  11 tg:{p07}:log:<generation>  stream of ends and bases
-- and, where money leaves by choice (withhold, withheld, and set_base that ends such a hold):
--  12 tg:{p07}:withheld  hash  withdrawal id -> "generation|wallet|amount", part of `held` in that
--                             generation alone
-- A wallet is an organization's (its uuid) or one window of a cap ("<cap id>@<window start, ms>").
--
-- ARGV[1] is always the generation. Amounts are nano-USD, 0 <= amount < 2^53, because a Lua number
-- counts exactly only that far; balances are moved by HINCRBY alone, which is exact in 64 bits.
-- Items follow: a call's item is three arguments, call id (16 bytes), head (msgpack array) and
-- bytes; heads may grow at the end. Arguments are checked before anything is judged, everything is
-- judged before anything is changed, and one bad item refuses itself, never its neighbours.
--
-- The fence: every write adds 1 to meta.seq, and this process remembers (generation, seq) of its
-- last write in a local table. Restart, promotion, FLUSHALL, restore and manual edits make the two
-- differ, so the first call afterwards is answered "EPOCH", until a recovery froze and loaded the
-- partition. A function that fails half way leaves them different as well.
--
-- Errors: "EPOCH ..." the data is not what this process wrote, or is of another generation;
-- "STATE ..." not allowed in this state; "ARGS ..." the caller's mistake. None changed anything.

local META, FREE, BASE, SPENT, HELD, VER, HOLDS, DUE, RATES, SLOTS, LOG, WITHHELD =
  1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
local AMOUNT_MAX = 9007199254740991
local INT64_MAX = "9223372036854775807"
local MINUTE_MS = 60000

local TWINS = {}   -- meta key -> {gen, seq}: what this process wrote last
local PRUNES = {}  -- meta key -> cursor of the search for rate buckets that are full again

-- An end replaces an earlier one of the same call only if it knows more: it ranks higher, or both
-- are lost and it has seen more consumed.
local RANK = {expired = 1, lost = 2, released = 3, settled = 3}

--------------------------------------------------------------------------------------------------
-- Words used by all functions

local function integer_text(number)
  return string.format("%d", number)
end

local function negated(text)
  if text == "0" then return text end
  if string.sub(text, 1, 1) == "-" then return string.sub(text, 2) end
  return "-" .. text
end

local function now_ms()
  local time = redis.call("TIME")
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function is_amount(value)
  return type(value) == "number" and value >= 0 and value <= AMOUNT_MAX and value % 1 == 0
end

local function is_name(value)
  return type(value) == "string" and value ~= ""
end

local function is_integer_text(value)
  if type(value) ~= "string" then return false end
  if value == "0" then return true end
  local digits = string.match(value, "^-?([1-9]%d*)$")
  return digits ~= nil and (#digits < 19 or (#digits == 19 and digits <= INT64_MAX))
end

local function unpacked(blob)
  local ok, value = pcall(cmsgpack.unpack, blob)
  if ok and type(value) == "table" then return value end
  return nil
end

local function is_open(text)
  return text and string.byte(text) == 111  -- "o"
end

-- The window of a cap at `now`: the last that has started. Gateways send the current one and its
-- neighbours, so a call that crosses the border is charged where this server's clock says.
local function window_start(cap, now)
  local starts = cap[3]
  local start = starts[1]
  for i = 2, #starts do
    if starts[i] <= now then start = starts[i] end
  end
  return start
end

local function window_wallet(call, cap, start)
  local names = call.names[start]
  if not names then
    names = {}
    call.names[start] = names
  end
  local name = names[cap[1]]
  if not name then
    name = cap[1] .. "@" .. integer_text(start)
    names[cap[1]] = name
  end
  return name
end

-- What was left in a bucket, and how long ago, ms.
local function bucket_parts(stored, now)
  local bar = string.find(stored, "|", 1, true)
  local left, at = tonumber(string.sub(stored, 1, bar - 1)), tonumber(string.sub(stored, bar + 1))
  return left, math.max(0, now - at)
end

-- What is left in a bucket now: full when unknown, refilled evenly, never above its capacity.
local function bucket_level(stored, per_minute, now)
  if not stored then return per_minute end
  local left, passed = bucket_parts(stored, now)
  return math.min(per_minute, left + passed * per_minute / MINUTE_MS)
end

local function bucket_text(level, now)
  return string.format("%.3f|%d", level, now)
end

--------------------------------------------------------------------------------------------------
-- The gate

local function epoch_error(meta)
  return redis.error_reply("EPOCH " .. (meta[1] or "0") .. " " .. (meta[3] or "-"))
end

local function register(name, flags, callback)
  redis.register_function{function_name = name, flags = flags, callback = callback}
end

-- The refusal of a call whose data, generation or state is not as it must be; nil: let it in.
local function refusal(keys, args, states)
  if (#keys ~= 11 and #keys ~= 12) or #args < 1 then
    return redis.error_reply("ARGS 11 or 12 keys and a generation")
  end
  local meta = redis.call("HMGET", keys[META], "gen", "seq", "state")
  local twin = TWINS[keys[META]]
  if not twin or not meta[1] or meta[1] ~= args[1]
    or meta[1] ~= twin.gen or meta[2] ~= twin.seq then
    return epoch_error(meta)
  end
  if not string.find(states, meta[3], 1, true) then
    return redis.error_reply("STATE " .. meta[1] .. " " .. meta[3])
  end
  local prefix = string.sub(keys[META], 1, -5)
  if keys[LOG] ~= prefix .. "log:" .. args[1] then
    return redis.error_reply("ARGS the stream is not the generation's")
  end
  if keys[WITHHELD] and keys[WITHHELD] ~= prefix .. "withheld" then
    return redis.error_reply("ARGS key 12 is not what is withheld")
  end
  return nil, meta[3]
end

--------------------------------------------------------------------------------------------------
-- A call's changes. Balances that are judged move at once; everything else is gathered and written
-- when the last item is done, one command for many items: commands are what a function costs.

local FIELDS_MAX = 1000  -- of one command; the Lua stack takes 8,000

local function in_parts(command, key, list)
  for first = 1, #list, FIELDS_MAX do
    redis.call(command, key, unpack(list, first, math.min(#list, first + FIELDS_MAX - 1)))
  end
end

local function new_call(keys, args, state)
  return {
    keys = keys, args = args, gen = args[1], state = state, now = now_ms(),
    partition = tonumber(string.match(keys[META], "{p(%d+)}")),
    texts = {},                    -- call id -> its text in `holds`, false if it has none
    deadlines = {}, ended = {},    -- for `due`: score, call id...; call id...
    changed = {},                  -- call ids whose text is to be written
    moves = {[FREE] = {}, [SPENT] = {}, [HELD] = {}, [SLOTS] = {}},  -- field -> amount
    free = {},                     -- wallet -> what it has free, as far as it was read
    levels = {}, rates = {},       -- rate -> tokens left; the rates to be written
    windows = {},                  -- window wallets known to exist
    names = {},                    -- window start -> cap id -> window wallet
  }
end

-- Gathers a move. The sum so far goes out first if a Lua number could not count it together with
-- this one.
local function move(call, key, field, amount)
  local moves = call.moves[key]
  local before = moves[field] or 0
  if before ~= 0 and math.abs(before + amount) > AMOUNT_MAX then
    redis.call("HINCRBY", call.keys[key], field, before)
    before = 0
  end
  moves[field] = before + amount
end

-- Deadlines are written before texts, and dropped after them: were this to fail half way, no open
-- hold would be without a deadline, and recovery finds every one by it.
local function write_changes(call)
  local keys = call.keys
  for key, moves in pairs(call.moves) do
    for field, amount in pairs(moves) do
      local sum = amount == 0 and 1 or redis.call("HINCRBY", keys[key], field, amount)
      if key == SLOTS and sum <= 0 then redis.call("HDEL", keys[SLOTS], field) end
    end
  end
  local levels = {}
  for rate in pairs(call.rates) do
    levels[#levels + 1] = rate
    levels[#levels + 1] = bucket_text(call.levels[rate], call.now)
  end
  in_parts("HSET", keys[RATES], levels)
  in_parts("ZADD", keys[DUE], call.deadlines)
  local texts = {}
  for id in pairs(call.changed) do
    texts[#texts + 1] = id
    texts[#texts + 1] = call.texts[id]
  end
  in_parts("HSET", keys[HOLDS], texts)
  in_parts("ZREM", keys[DUE], call.ended)
end

local function text_of(call, id)
  local text = call.texts[id]
  if text == nil then
    text = redis.call("HGET", call.keys[HOLDS], id)
    call.texts[id] = text
  end
  return text
end

local function set_text(call, id, text)
  call.texts[id] = text
  call.changed[id] = true
end

local function free_of(call, wallet)
  local free = call.free[wallet]
  if free == nil then
    free = redis.call("HGET", call.keys[FREE], wallet)
    free = free and tonumber(free)
    call.free[wallet] = free
  end
  return free
end

local function level_of(call, rate, per_minute)
  local level = call.levels[rate]
  if level == nil then
    level = bucket_level(redis.call("HGET", call.keys[RATES], rate), per_minute, call.now)
    call.levels[rate] = level
  end
  return math.min(level, per_minute)
end

local function set_level(call, rate, level)
  call.levels[rate] = level
  call.rates[rate] = true
end

-- A window nobody has spent in yet does not exist; recovery loads every one that had spend.
local function ensure_window(call, wallet, limit)
  if call.windows[wallet] then return end
  call.windows[wallet] = true
  if redis.call("HSETNX", call.keys[BASE], wallet, limit) == 1 then
    redis.call("HSET", call.keys[FREE], wallet, limit)
  end
end

-- Registers a writing function behind the gate. The twin follows only after everything is written:
-- a function that raises leaves data and twin different, and so calls for a recovery.
local function write(name, states, flags, body)
  register(name, flags, function(keys, args)
    local refused, state = refusal(keys, args, states)
    if refused then return refused end
    local seq = redis.call("HINCRBY", keys[META], "seq", 1)
    local call = new_call(keys, args, state)
    local answer = body(call)
    write_changes(call)
    TWINS[keys[META]].seq = integer_text(seq)
    return answer
  end)
end

-- One answer per item of three arguments; `flaw` says what is wrong with an item, nil if nothing.
local function each_item(call, flaw, step)
  local args, answers, ids = call.args, {}, {}
  for i = 2, #args, 3 do ids[#ids + 1] = args[i] end
  if #ids == 0 or #ids > FIELDS_MAX then return redis.error_reply("ARGS 1 to 1000 items") end
  local texts = redis.call("HMGET", call.keys[HOLDS], unpack(ids))
  for i, id in ipairs(ids) do call.texts[id] = texts[i] end
  for i, id in ipairs(ids) do
    local head, bytes = unpacked(args[3 * i]), args[3 * i + 1]
    local wrong
    if #id ~= 16 or not bytes then
      wrong = "a call id is 16 bytes, an item three arguments"
    elseif not head then
      wrong = "the head is no msgpack array"
    else
      wrong = flaw(call, head)
    end
    if wrong then
      answers[i] = step(call, id, nil, wrong)
    else
      answers[i] = step(call, id, head, bytes, args[3 * i])
    end
  end
  return answers
end

--------------------------------------------------------------------------------------------------
-- Flaws: nil, or what is wrong with an item's head

local function flaw_of_caps(caps)
  if type(caps) ~= "table" then return "caps" end
  local seen = {}
  for _, cap in ipairs(caps) do
    if type(cap) ~= "table" or not is_name(cap[1]) or not is_amount(cap[2])
      or type(cap[3]) ~= "table" or #cap[3] == 0 or seen[cap[1]] then
      return "cap"
    end
    for _, start in ipairs(cap[3]) do
      if not is_amount(start) then return "window start" end
    end
    seen[cap[1]] = true
  end
  return nil
end

-- A list of {id, integer, ...}, each id once.
local function flaw_of_limits(limits, fields)
  if type(limits) ~= "table" then return "limits" end
  local seen = {}
  for _, limit in ipairs(limits) do
    if type(limit) ~= "table" or not is_name(limit[1]) or seen[limit[1]] then return "limit" end
    for i = 2, fields do
      if not is_amount(limit[i]) then return "limit" end
    end
    seen[limit[1]] = true
  end
  return nil
end

-- Head of a hold: partition, wallet, amount, caps {{id, limit, starts_ms}}, rates
-- {{id, per_minute, take}}, slots {{id, limit}}, lease_ms. Of arrears, see `owe`, also generation.
local H_PARTITION, H_WALLET, H_AMOUNT, H_CAPS, H_RATES, H_SLOTS, H_LEASE = 1, 2, 3, 4, 5, 6, 7
local H_OWED_IN = 8

local function flaw_of_hold(call, head)
  if head[H_PARTITION] ~= call.partition then return "another partition's" end
  if not is_name(head[H_WALLET]) then return "wallet" end
  if not is_amount(head[H_AMOUNT]) then return "amount" end
  if not is_amount(head[H_LEASE]) then return "lease" end
  return flaw_of_caps(head[H_CAPS]) or flaw_of_limits(head[H_RATES], 3)
    or flaw_of_limits(head[H_SLOTS], 2)
end

-- Head of an end: partition, wallet, kind, charge, caps, tokens; of one that is late, perhaps the
-- id of the arrears that keep its charge.
local E_PARTITION, E_WALLET, E_KIND, E_CHARGE, E_CAPS, E_TOKENS, E_OWED = 1, 2, 3, 4, 5, 6, 7

local function flaw_of_end(call, head)
  if head[E_PARTITION] ~= call.partition then return "another partition's" end
  if not is_name(head[E_WALLET]) then return "wallet" end
  if not RANK[head[E_KIND]] then return "kind" end
  if not is_amount(head[E_CHARGE]) then return "charge" end
  if not is_amount(head[E_TOKENS]) then return "tokens" end
  if (head[E_KIND] == "released" or head[E_KIND] == "expired") and head[E_CHARGE] ~= 0 then
    return "a charge for nothing"
  end
  return flaw_of_caps(head[E_CAPS])
end

-- Head of a renewal: lease_ms, charge so far (-1: not known).
local function flaw_of_renewal(_, head)
  if not is_amount(head[1]) then return "lease" end
  if head[2] ~= -1 and not is_amount(head[2]) then return "charge" end
  return nil
end

--------------------------------------------------------------------------------------------------
-- Open holds

-- An open hold: "o", amount, when it was held, charge so far (-1: not known), length of the head;
-- then the head as it came, and the ticket. Which windows it is held in follows from when.
local ROW = ">c1dddI4"

local function row_text(row)
  return struct.pack(ROW, "o", row.amount, row.held_ms, row.progress, #row.head_text)
    .. row.head_text .. row.ticket
end

local function row_of(text)
  local row, length, at, _ = {}, nil, nil, nil
  _, row.amount, row.held_ms, row.progress, length, at = struct.unpack(ROW, text)
  row.head_text = string.sub(text, at, at + length - 1)
  row.head = unpacked(row.head_text)
  row.ticket = string.sub(text, at + length)
  return row
end

local function new_row(call, head, head_text, ticket)
  return {amount = head[H_AMOUNT], held_ms = call.now, progress = -1, head = head,
    head_text = head_text, ticket = ticket}
end

local function keep_row(call, id, row, lease_ms)
  set_text(call, id, row_text(row))
  call.deadlines[#call.deadlines + 1] = call.now + lease_ms
  call.deadlines[#call.deadlines + 1] = id
end

-- The open hold of an id found in `due`; what has none there does not belong there.
local function due_row(call, id)
  local text = text_of(call, id)
  local ok, row = pcall(row_of, is_open(text) and text or "")
  if ok and row.head then return row end
  call.ended[#call.ended + 1] = id
  return nil
end

-- Drops arrears without a trace; what they still keep is given back by the caller.
local function drop_row(call, id)
  call.texts[id], call.changed[id] = false, nil
  redis.call("HDEL", call.keys[HOLDS], id)
  call.ended[#call.ended + 1] = id
end

local function held_window(call, row, cap)
  return window_wallet(call, cap, window_start(cap, row.held_ms))
end

--------------------------------------------------------------------------------------------------
-- hold: tg_hold, items of a hold (bytes: the ticket, kept for the sweeper)
--
-- Admits a call if its wallet and every cap have `amount` free (an amount of 0 always passes),
-- every rate has tokens and every slot a place: all or none. Answers per item
--   {1, free, whole tokens left per rate...}           held; the same again for a repeated call id
--   {0, code, scope, free, held, retry_after_ms}       wallet | cap | rate | slots | no_wallet
--   {-1, what}                                         a flawed item, or "ended": the id is used up
-- Refused at maxmemory.

local function until_next_window(cap, now)
  for _, start in ipairs(cap[3]) do
    if start > now then return start - now end
  end
  return 0
end

-- What the wallets named refuse `amount` with: of those that are short, one that could not pay even
-- if every other hold were given back comes first, then the one with the least.
local function short_answer(call, short, amount)
  local worst
  for _, scope in ipairs(short) do
    scope.held = tonumber(redis.call("HGET", call.keys[HELD], scope.wallet) or "0")
      + (call.moves[HELD][scope.wallet] or 0)
    scope.is_hopeless = scope.free + scope.held < amount
    if not worst or (scope.is_hopeless and not worst.is_hopeless)
      or (scope.is_hopeless == worst.is_hopeless and scope.free < worst.free) then
      worst = scope
    end
  end
  if not worst.cap then return {0, "wallet", worst.wallet, worst.free, worst.held, 0} end
  local wait = until_next_window(worst.cap, call.now)
  return {0, "cap", worst.cap[1], worst.free, worst.held, wait}
end

-- The answer if wallet or caps can't hold `amount` more; nil if they can.
local function judge_money(call, row, amount)
  local wallet, short = row.head[H_WALLET], {}
  local free = free_of(call, wallet)
  if not free then return {0, "no_wallet", wallet, 0, 0, 0} end
  if amount == 0 then return nil end
  if free < amount then short[1] = {wallet = wallet, free = free} end
  for _, cap in ipairs(row.head[H_CAPS]) do
    local window = held_window(call, row, cap)
    free = free_of(call, window) or cap[2]
    if free < amount then short[#short + 1] = {wallet = window, free = free, cap = cap} end
  end
  if #short == 0 then return nil end
  return short_answer(call, short, amount)
end

-- The answer of the first bucket that has too little.
local function judge_rates(call, rates)
  for _, rate in ipairs(rates) do
    local per_minute, take = rate[2], rate[3]
    local level = level_of(call, rate[1], per_minute)
    if take > 0 and level < take then
      local wait = 0
      if take <= per_minute then wait = math.ceil((take - level) * MINUTE_MS / per_minute) end
      return {0, "rate", rate[1], math.floor(level), 0, wait}
    end
  end
  return nil
end

local function judge_slots(call, slots)
  for _, slot in ipairs(slots) do
    local open = tonumber(redis.call("HGET", call.keys[SLOTS], slot[1]) or "0")
      + (call.moves[SLOTS][slot[1]] or 0)
    if open >= slot[2] then return {0, "slots", slot[1], 0, open, 0} end
  end
  return nil
end

-- Moves `amount` from free to held, in the wallet and in every window of the caps.
local function take(call, row, amount)
  if amount == 0 then return end
  local keys, wallet = call.keys, row.head[H_WALLET]
  call.free[wallet] = redis.call("HINCRBY", keys[FREE], wallet, -amount)
  move(call, HELD, wallet, amount)
  for _, cap in ipairs(row.head[H_CAPS]) do
    local window = held_window(call, row, cap)
    ensure_window(call, window, cap[2])
    call.free[window] = redis.call("HINCRBY", keys[FREE], window, -amount)
    move(call, HELD, window, amount)
  end
end

local function take_places(call, slots)
  for _, slot in ipairs(slots) do move(call, SLOTS, slot[1], 1) end
end

local function held_answer(call, wallet, rates)
  local answer = {1, free_of(call, wallet) or 0}
  for i, rate in ipairs(rates) do
    answer[i + 2] = math.floor(level_of(call, rate[1], rate[2]))
  end
  return answer
end

local function hold_step(call, id, head, bytes, head_text)
  if not head then return {-1, bytes} end
  local known = text_of(call, id)
  local wallet, amount, rates, slots = head[H_WALLET], head[H_AMOUNT], head[H_RATES], head[H_SLOTS]
  if is_open(known) then return held_answer(call, row_of(known).head[H_WALLET], rates) end
  if known then return {-1, "ended"} end

  local row = new_row(call, head, head_text, bytes)
  local refused = judge_money(call, row, amount) or judge_rates(call, rates)
    or judge_slots(call, slots)
  if refused then return refused end

  take(call, row, amount)
  for _, rate in ipairs(rates) do
    set_level(call, rate[1], level_of(call, rate[1], rate[2]) - rate[3])
  end
  take_places(call, slots)
  keep_row(call, id, row, head[H_LEASE])
  return held_answer(call, wallet, rates)
end

write("tg_hold", "A", {}, function(call) return each_item(call, flaw_of_hold, hold_step) end)

--------------------------------------------------------------------------------------------------
-- extend: tg_extend, items of a hold whose amount is the new total
--
-- Raises an open hold to `amount` if wallet and caps have the difference free, and renews its
-- lease. A total that is not above the present one changes only the deadline, so repeats and
-- reordered calls are harmless. Answers as hold does; {0, "no_hold", ...} if none is open.
-- Refused at maxmemory.

local function extend_step(call, id, head, bytes)
  if not head then return {-1, bytes} end
  local known = text_of(call, id)
  if not is_open(known) then return {0, "no_hold", head[H_WALLET], 0, 0, 0} end
  local row = row_of(known)
  local more = math.max(0, head[H_AMOUNT] - row.amount)
  local refused = judge_money(call, row, more)
  if refused then return refused end

  take(call, row, more)
  row.amount = row.amount + more
  keep_row(call, id, row, head[H_LEASE])
  return held_answer(call, row.head[H_WALLET], {})
end

write("tg_extend", "A", {}, function(call) return each_item(call, flaw_of_hold, extend_step) end)

--------------------------------------------------------------------------------------------------
-- rehold: tg_rehold, items of a hold
--
-- Holds for a call that is already under way, after a change of generation: money, caps and slots,
-- without asking whether they are free, and no rates. While recovering, only the row is written:
-- activate computes the sums. An open hold is raised to `amount` and its lease renewed; one that
-- has ended stays ended. Answers 1 (held), 0 (ended, or the wallet is unknown), -1 (flawed).

local function rehold_step(call, id, head, bytes, head_text)
  if not head then return -1 end
  local known = text_of(call, id)
  local was_open, row, more = is_open(known), nil, nil
  if was_open then
    row = row_of(known)
    more = math.max(0, head[H_AMOUNT] - row.amount)
    row.amount = row.amount + more
  else
    if known and string.match(known, "^x|(%d+)|") == call.gen then return 0 end
    row, more = new_row(call, head, head_text, bytes), head[H_AMOUNT]
  end
  if call.state == "A" then
    if not free_of(call, row.head[H_WALLET]) then return 0 end
    take(call, row, more)
    if not was_open then take_places(call, row.head[H_SLOTS]) end
  end
  keep_row(call, id, row, head[H_LEASE])
  return 1
end

write("tg_rehold", "AR", {"allow-oom"}, function(call)
  return each_item(call, flaw_of_hold, rehold_step)
end)

--------------------------------------------------------------------------------------------------
-- owe: tg_owe, items of a hold whose head names the generation (bytes: unused)
--
-- Holds arrears: the sum that ended calls of one wallet and the same caps owe, whose ends this
-- generation's stream does not have. So what was spent is not spent twice, however long it takes to
-- tell the ends one by one: `late` takes each charge from here. As a hold it is kept by activate,
-- by money alone; it leaves no record, and counts in this generation only. While active, a sum that
-- comes too late to be waited for is taken without asking, as rehold does. Repeating it changes
-- nothing. Answers 1 (held), 0 (the wallet is unknown), -1 (flawed).

local function owe_step(call, id, head, bytes, head_text)
  if not head or head[H_OWED_IN] ~= tonumber(call.gen) then return -1 end
  if text_of(call, id) then return 1 end
  local row = new_row(call, head, head_text, bytes)
  if call.state == "A" then
    if not free_of(call, head[H_WALLET]) then return 0 end
    take(call, row, row.amount)
  end
  keep_row(call, id, row, head[H_LEASE])
  return 1
end

write("tg_owe", "AR", {"allow-oom"}, function(call)
  return each_item(call, flaw_of_hold, owe_step)
end)

--------------------------------------------------------------------------------------------------
-- sign: tg_sign, KEYS[12] tg:{p07}:roll:<generation>, ARGV[2] a gateway
--
-- Notes that the gateway has told and held again, in this generation, all it has. An older
-- generation is refused, as everywhere. It moves no balance and may be repeated. Answers 1.

register("tg_sign", {"allow-oom"}, function(keys, args)
  local refused = refusal({unpack(keys, 1, 11)}, args, "AR")
  if refused then return refused end
  local roll = string.sub(keys[META], 1, -5) .. "roll:" .. args[1]
  if #args ~= 2 or keys[12] ~= roll or not is_name(args[2]) then
    return redis.error_reply("ARGS the generation's roll and a gateway")
  end
  redis.call("SADD", roll, args[2])
  redis.call("EXPIRE", roll, 60)
  return 1
end)

--------------------------------------------------------------------------------------------------
-- settle: tg_settle, items of an end (bytes: the record)
--
-- Ends an open hold: gives it back where it was held, frees its slots, corrects its token buckets
-- by taken - tokens, takes the charge from the wallet and from the cap windows of this moment, and
-- appends the entry, m=1. A charge above the hold is taken in full. A lost call is charged by its
-- last progress where that is more than the end says. Answers per item
--   "S<stream id>"  done    "D<stream id>"  ended before, by an end that knew as much
--   "U"  no open hold: send `late`          "E<what>"  flawed
-- Passes at maxmemory, as everything does that ends or keeps a call.

-- Gives back `amount` of a hold, less what is charged, and returns the windows charged.
local function move_money(call, row, amount, charge, caps)
  local wallet = row.head[H_WALLET]
  move(call, HELD, wallet, -amount)
  move(call, FREE, wallet, amount - charge)
  move(call, SPENT, wallet, charge)
  if amount ~= 0 then
    for _, cap in ipairs(row.head[H_CAPS]) do
      local window = held_window(call, row, cap)
      move(call, HELD, window, -amount)
      move(call, FREE, window, amount)
    end
  end
  local windows = {}
  if charge == 0 then return windows end
  for i, cap in ipairs(caps) do
    local start = window_start(cap, call.now)
    local window = window_wallet(call, cap, start)
    ensure_window(call, window, cap[2])
    move(call, FREE, window, -charge)
    move(call, SPENT, window, charge)
    windows[i] = {cap[1], start, cap[2]}
  end
  return windows
end

local function correct_buckets(call, rates, tokens)
  for _, rate in ipairs(rates) do
    if string.sub(rate[1], 1, 4) == "tpm:" then
      local level = level_of(call, rate[1], rate[2]) + rate[3] - tokens
      set_level(call, rate[1], math.min(level, rate[2]))
    end
  end
end

-- Appends the entry of an end and marks its call; the answer is the stream id.
local function append_end(call, id, moved, kind, wallet, charge, windows, record)
  local text = integer_text(charge)
  local stream_id = redis.call("XADD", call.keys[LOG], "*", "k", kind, "m", moved, "i", id,
    "w", wallet, "c", text, "x", cmsgpack.pack(windows), "r", record)
  set_text(call, id, "x|" .. call.gen .. "|" .. text .. "|" .. stream_id .. "|" .. kind)
  return stream_id
end

local function finish(call, id, row, kind, charge, caps, record)
  local windows = move_money(call, row, row.amount, charge, caps)
  for _, slot in ipairs(row.head[H_SLOTS]) do move(call, SLOTS, slot[1], -1) end
  call.ended[#call.ended + 1] = id
  return append_end(call, id, "1", kind, row.head[H_WALLET], charge, windows, record)
end

-- The stream id of the end a text stands for, if it is of this generation and knows as much as the
-- one of this head. What an older generation logged was drained then and proves nothing now.
local function same_end(call, text, head)
  local gen, charge, stream_id, before = string.match(text, "^x|(%d+)|(%d+)|([%d-]+)|(%a+)$")
  local kind = head[E_KIND]
  if gen ~= call.gen or RANK[before] < RANK[kind] then return nil end
  if before == "lost" and kind == "lost" and tonumber(charge) < head[E_CHARGE] then return nil end
  return stream_id
end

-- Charge and record of an end: who ends a dead gateway's call knows no more than it told here last.
local function best_known(row, head, record)
  if head[E_KIND] == "lost" and row.progress > head[E_CHARGE] then
    return row.progress, row.ticket
  end
  return head[E_CHARGE], record
end

local function settle_step(call, id, head, bytes)
  if not head then return "E" .. bytes end
  local known = text_of(call, id)
  if not known then return "U" end
  if not is_open(known) then
    local stream_id = same_end(call, known, head)
    return stream_id and "D" .. stream_id or "U"
  end
  local row = row_of(known)
  local caps = #head[E_CAPS] > 0 and head[E_CAPS] or row.head[H_CAPS]
  correct_buckets(call, row.head[H_RATES], head[E_TOKENS])
  local charge, record = best_known(row, head, bytes)
  return "S" .. finish(call, id, row, head[E_KIND], charge, caps, record)
end

write("tg_settle", "A", {"allow-oom"}, function(call)
  return each_item(call, flaw_of_end, settle_step)
end)

--------------------------------------------------------------------------------------------------
-- late: tg_late, items of an end (bytes: the record)
--
-- Logs an end whose hold is not known, m=0: no balance is touched, Postgres decides whether it is
-- new. Where arrears keep its charge it is taken from them, m=1, as settle takes it from a hold.
-- While recovering it also ends a hold that survived in the old data, whose sums are not computed
-- yet, as settle would. Answers "L<stream id>" (logged), "D<stream id>" (logged before), "O" (the
-- hold is open after all: send settle), "E<what>".

-- The open arrears of this id; nil if they were paid up, have lapsed or are an older generation's.
local function arrears_of(call, id)
  local known = type(id) == "string" and #id == 16 and text_of(call, id)
  local row = is_open(known) and row_of(known)
  if row and row.head[H_OWED_IN] == tonumber(call.gen) then return row end
  return nil
end

local function repay(call, id, owed_id, row, head, record)
  local charge = head[E_CHARGE]
  local part = math.min(charge, row.amount)
  local windows = move_money(call, row, part, charge, head[E_CAPS])
  row.amount = row.amount - part
  set_text(call, owed_id, row_text(row))
  return append_end(call, id, "1", head[E_KIND], row.head[H_WALLET], charge, windows, record)
end

local function late_step(call, id, head, bytes)
  if not head then return "E" .. bytes end
  local known = text_of(call, id)
  local was_open = is_open(known)
  if was_open and call.state == "A" then return "O" end
  if known and not was_open then
    local stream_id = same_end(call, known, head)
    if stream_id then return "D" .. stream_id end
  end
  local owed = call.state == "A" and arrears_of(call, head[E_OWED])
  if owed and owed.head[H_WALLET] == head[E_WALLET] then
    return "L" .. repay(call, id, head[E_OWED], owed, head, bytes)
  end
  local charge, record = head[E_CHARGE], bytes
  if was_open then charge, record = best_known(row_of(known), head, bytes) end
  local windows = {}
  for i, cap in ipairs(charge > 0 and head[E_CAPS] or {}) do
    windows[i] = {cap[1], window_start(cap, call.now), cap[2]}
  end
  local stream_id = append_end(
    call, id, "0", head[E_KIND], head[E_WALLET], charge, windows, record)
  if was_open then call.ended[#call.ended + 1] = id end
  return "L" .. stream_id
end

write("tg_late", "AR", {"allow-oom"}, function(call)
  return each_item(call, flaw_of_end, late_step)
end)

--------------------------------------------------------------------------------------------------
-- acquit: tg_acquit, ARGV[2..] ids of arrears
--
-- Gives back what is left of arrears whose ends are all told. Repeating it changes nothing. Answers
-- how many there were.

local function acquit(call, id, row)
  move_money(call, row, row.amount, 0, {})
  drop_row(call, id)
end

write("tg_acquit", "A", {"allow-oom"}, function(call)
  local acquitted = 0
  for i = 2, #call.args do
    local row = arrears_of(call, call.args[i])
    if row then
      acquit(call, call.args[i], row)
      acquitted = acquitted + 1
    end
  end
  return acquitted
end)

--------------------------------------------------------------------------------------------------
-- renew: tg_renew, items of a renewal (bytes: the record so far, empty: keep the ticket)
--
-- New deadlines, and what the calls have consumed so far, which the sweeper would charge. A
-- deadline never moves back. Answers 1 (renewed), 0 (no open hold), -1 (flawed) per item.

local function renew_step(call, id, head, bytes)
  if not head then return -1 end
  local known = text_of(call, id)
  if not is_open(known) then return 0 end
  local deadline = tonumber(redis.call("ZSCORE", call.keys[DUE], id) or "0")
  call.deadlines[#call.deadlines + 1] = math.max(deadline, call.now + head[1])
  call.deadlines[#call.deadlines + 1] = id
  if head[2] >= 0 then
    local row = row_of(known)
    row.progress = head[2]
    if bytes ~= "" then row.ticket = bytes end
    set_text(call, id, row_text(row))
  end
  return 1
end

write("tg_renew", "A", {"allow-oom"}, function(call)
  return each_item(call, flaw_of_renewal, renew_step)
end)

--------------------------------------------------------------------------------------------------
-- sweep: tg_sweep, ARGV[2] how many at most
--
-- Ends overdue holds: as lost, charged by the last progress, or as expired with charge 0 when none
-- is known; arrears, whose gateway is gone, without a trace. A settle that still comes is logged as late, and Postgres corrects the difference.
-- Answers how many it ended. Also forgets rate buckets that are full again.

local function prune_buckets(call)
  local keys = call.keys
  local page = redis.call("HSCAN", keys[RATES], PRUNES[keys[META]] or "0", "COUNT", 100)
  PRUNES[keys[META]] = page[1]
  for i = 1, #page[2], 2 do
    -- From 0 a bucket of any size is full within a minute.
    local left, passed = bucket_parts(page[2][i + 1], call.now)
    if left >= 0 and passed >= MINUTE_MS then
      redis.call("HDEL", keys[RATES], page[2][i])
    end
  end
end

write("tg_sweep", "A", {"allow-oom"}, function(call)
  local limit = tonumber(call.args[2])
  if not is_amount(limit) then return redis.error_reply("ARGS a limit") end
  local keys = call.keys
  local overdue = redis.call("ZRANGEBYSCORE", keys[DUE], "-inf", call.now, "LIMIT", 0, limit)
  local ended = #overdue
  for _, id in ipairs(overdue) do
    local row = due_row(call, id)
    if not row then
      ended = ended - 1
    elseif row.head[H_OWED_IN] then
      acquit(call, id, row)
    elseif row.progress >= 0 then
      finish(call, id, row, "lost", row.progress, row.head[H_CAPS], row.ticket)
    else
      finish(call, id, row, "expired", 0, {}, row.ticket)
    end
  end
  prune_buckets(call)
  return ended
end)

--------------------------------------------------------------------------------------------------
-- ack: tg_ack, ARGV[2..] call ids whose ends Postgres has
--
-- Drops ended rows, of whatever generation; open ones stay. Answers how many it dropped.

write("tg_ack", "AR", {"allow-oom"}, function(call)
  local dropped = 0
  for i = 2, #call.args do
    local known = redis.call("HGET", call.keys[HOLDS], call.args[i])
    if known and not is_open(known) then
      dropped = dropped + redis.call("HDEL", call.keys[HOLDS], call.args[i])
    end
  end
  return dropped
end)

--------------------------------------------------------------------------------------------------
-- withhold: tg_withhold, ARGV[2] withdrawal id (a uuid's text), ARGV[3] wallet, ARGV[4] amount
--
-- Holds what is to leave a wallet by choice, if that much is free. No call is meant, so there is no
-- deadline, no cap and nothing to sweep: only set_base ends it. It counts in this generation alone:
-- a recovery drops the sums it is part of, and Postgres books nothing that was withheld before it.
-- Repeating it changes nothing. Answers {1, free} or {0, code, wallet, free, held, 0}, as hold does.
-- Refused at maxmemory.

local function withheld_parts(text)
  return string.match(text or "", "^(%d+)|(.+)|(%d+)$")
end

write("tg_withhold", "A", {}, function(call)
  local keys, id, wallet, amount = call.keys, call.args[2], call.args[3], tonumber(call.args[4])
  if not keys[WITHHELD] or #call.args ~= 4 or #id ~= 36 or not is_name(wallet)
    or not is_amount(amount) or amount == 0 then
    return redis.error_reply("ARGS 12 keys; withdrawal id, wallet, amount")
  end
  local text = call.gen .. "|" .. wallet .. "|" .. integer_text(amount)
  local known = redis.call("HGET", keys[WITHHELD], id)
  if known == text then return {1, free_of(call, wallet) or 0} end
  if known and withheld_parts(known) == call.gen then
    return redis.error_reply("ARGS the id is another withdrawal's")
  end
  local row = {head = {[H_WALLET] = wallet, [H_CAPS] = {}}}
  local refused = judge_money(call, row, amount)
  if refused then return refused end

  take(call, row, amount)
  redis.call("HSET", keys[WITHHELD], id, text)
  return {1, free_of(call, wallet)}
end)

--------------------------------------------------------------------------------------------------
-- set_base: tg_set_base, ARGV[2..] msgpack {wallet, base, version, cause, spent, withdrawal ids},
-- base and spent as decimal text because lifetime sums may pass 2^53; the ids may be left out
--
-- Takes a base that Postgres decided, if its version is above the one here: free moves by the
-- difference, and the log gets a `base` entry. A wallet that is missing is made, with `spent`.
-- Gives back, in the same step, what is withheld for the withdrawals named: those that Postgres has
-- ended, with this base or before, so whatever version is here, the newest of them is in it.
-- Answers per item 1 (taken), 0 (this version or a newer one is here already), -1 (flawed).

local function note_version(keys, version)
  if version > tonumber(redis.call("HGET", keys[META], "ver") or "0") then
    redis.call("HSET", keys[META], "ver", integer_text(version))
  end
end

local function is_ids(call, ids)
  if ids == nil then return true end
  if type(ids) ~= "table" or (#ids > 0 and not call.keys[WITHHELD]) then return false end
  for _, id in ipairs(ids) do
    if type(id) ~= "string" or #id ~= 36 then return false end
  end
  return true
end

local function give_back(call, ids)
  local keys = call.keys
  for _, id in ipairs(ids or {}) do
    local gen, wallet, amount = withheld_parts(redis.call("HGET", keys[WITHHELD], id))
    if gen == call.gen then
      redis.call("HINCRBY", keys[HELD], wallet, negated(amount))
      redis.call("HINCRBY", keys[FREE], wallet, amount)
    end
    redis.call("HDEL", keys[WITHHELD], id)
  end
end

local function set_base_step(call, wallet, base, version, cause, spent)
  local keys = call.keys
  local before = redis.call("HGET", keys[BASE], wallet)
  if before and version <= tonumber(redis.call("HGET", keys[VER], wallet) or "0") then return 0 end
  redis.call("HINCRBY", keys[FREE], wallet, base)
  if before then
    redis.call("HINCRBY", keys[FREE], wallet, negated(before))
  else
    redis.call("HINCRBY", keys[FREE], wallet, negated(spent))
    redis.call("HSET", keys[SPENT], wallet, spent)
  end
  redis.call("HSET", keys[BASE], wallet, base)
  redis.call("HSET", keys[VER], wallet, integer_text(version))
  note_version(keys, version)
  redis.call("XADD", keys[LOG], "*", "k", "base", "w", wallet, "b", base,
    "v", integer_text(version), "a", cause)
  return 1
end

write("tg_set_base", "A", {"allow-oom"}, function(call)
  local answers = {}
  for i = 2, #call.args do
    local item = unpacked(call.args[i])
    if item and is_name(item[1]) and is_integer_text(item[2]) and is_amount(item[3])
      and type(item[4]) == "string" and is_integer_text(item[5]) and is_ids(call, item[6]) then
      answers[i - 1] = set_base_step(call, item[1], item[2], item[3], item[4], item[5])
      give_back(call, item[6])
    else
      answers[i - 1] = -1
    end
  end
  return answers
end)

--------------------------------------------------------------------------------------------------
-- forget: tg_forget, ARGV[2..] wallets of cap windows that are over
--
-- Drops them if nothing is held in them; organizations' wallets stay. Answers how many it dropped.

write("tg_forget", "A", {"allow-oom"}, function(call)
  local keys, dropped = call.keys, 0
  for i = 2, #call.args do
    local wallet = call.args[i]
    local held = redis.call("HGET", keys[HELD], wallet) or "0"
    if string.find(wallet, "@", 1, true) and held == "0" then
      dropped = dropped + redis.call("HDEL", keys[BASE], wallet)
      for _, key in ipairs({FREE, SPENT, HELD, VER}) do redis.call("HDEL", keys[key], wallet) end
    end
  end
  return dropped
end)

--------------------------------------------------------------------------------------------------
-- freeze: tg_freeze, ARGV[1] the new generation, ARGV[2] the deployment, "" for none, ARGV[3] how
-- far Postgres has drained the streams of older ones, "<generation> <stream id>"; may be left out
--
-- Begins a recovery, on any data and none: only if the generation is above every one seen.
-- Balances, rates and slots are dropped; open holds stay, and so do the streams, until they are
-- drained. The sequence goes on, and where it is lost it starts from the clock: it never repeats.
-- Answers "OK"; EPOCH names the highest generation seen.

register("tg_freeze", {"allow-oom"}, function(keys, args)
  local gen = tonumber(args[1])
  if #keys ~= 11 or #args < 2 or #args > 3 or not is_amount(gen) or gen < 1 then
    return redis.error_reply("ARGS 11 keys, a generation, a deployment and perhaps a position")
  end
  local meta = redis.call("HMGET", keys[META], "gen", "seq", "state", "install")
  local twin = TWINS[keys[META]] or {gen = "0", seq = "0"}
  local seen = math.max(tonumber(meta[1] or "0"), tonumber(twin.gen))
  if gen <= seen then
    return redis.error_reply("EPOCH " .. integer_text(seen) .. " " .. (meta[3] or "-"))
  end
  if args[2] ~= "" and meta[4] and meta[4] ~= "" and meta[4] ~= args[2] then
    return redis.error_reply("ARGS the data belongs to deployment " .. meta[4])
  end
  local time = redis.call("TIME")
  local seq = math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]),
    tonumber(meta[2] or "0") + 1, tonumber(twin.seq) + 1)
  redis.call("UNLINK", keys[FREE], keys[BASE], keys[SPENT], keys[HELD], keys[VER], keys[RATES],
    keys[SLOTS])
  redis.call("HSET", keys[META], "gen", args[1], "seq", integer_text(seq), "state", "R", "proven",
    args[3] or "")
  if args[2] ~= "" then redis.call("HSET", keys[META], "install", args[2]) end
  TWINS[keys[META]] = {gen = args[1], seq = integer_text(seq)}
  return redis.status_reply("OK")
end)

--------------------------------------------------------------------------------------------------
-- load: tg_load, ARGV[2..] msgpack {wallet, base, spent, version}, amounts as decimal text
--
-- While recovering, sets wallets to what Postgres says; what is held is added by activate. May be
-- called in parts and repeated. Answers how many it loaded; all or none of a call.

local function load_step(call, wallet, base, spent, version)
  local keys = call.keys
  redis.call("HSET", keys[BASE], wallet, base)
  redis.call("HSET", keys[SPENT], wallet, spent)
  redis.call("HSET", keys[VER], wallet, integer_text(version))
  redis.call("HSET", keys[FREE], wallet, base)
  redis.call("HINCRBY", keys[FREE], wallet, negated(spent))
  note_version(keys, version)
end

write("tg_load", "R", {"allow-oom"}, function(call)
  local items = {}
  for i = 2, #call.args do
    local item = unpacked(call.args[i])
    if not (item and is_name(item[1]) and is_integer_text(item[2]) and is_integer_text(item[3])
      and is_amount(item[4])) then
      return redis.error_reply("ARGS wallet, base, spent, version")
    end
    items[i - 1] = item
  end
  for _, item in ipairs(items) do load_step(call, item[1], item[2], item[3], item[4]) end
  return #items
end)

--------------------------------------------------------------------------------------------------
-- activate: tg_activate, ARGV[2] the highest base version loaded
--
-- Adds what the open holds keep to the loaded wallets and slots, and lets calls in. A hold whose
-- wallet was not loaded ends as expired; arrears of an older generation are dropped, for what is
-- owed now was told again. Repeating it changes nothing. Answers how many are open.

write("tg_activate", "AR", {"allow-oom"}, function(call)
  local version, keys, open = tonumber(call.args[2]), call.keys, 0
  if not is_amount(version) then return redis.error_reply("ARGS a version") end
  if call.state == "A" then return redis.call("ZCARD", keys[DUE]) end
  for _, id in ipairs(redis.call("ZRANGE", keys[DUE], 0, -1)) do
    local row = due_row(call, id)
    local owed_in, is_loaded = row and row.head[H_OWED_IN], row and free_of(call, row.head[H_WALLET])
    if owed_in and (owed_in ~= tonumber(call.gen) or not is_loaded) then
      drop_row(call, id)
    elseif is_loaded then
      take(call, row, row.amount)
      take_places(call, row.head[H_SLOTS])
      if not owed_in then open = open + 1 end
    elseif row then
      append_end(call, id, "1", "expired", row.head[H_WALLET], 0, {}, row.ticket)
      call.ended[#call.ended + 1] = id
    end
  end
  note_version(keys, version)
  redis.call("HSET", keys[META], "state", "A")
  return open
end)

--------------------------------------------------------------------------------------------------
-- Reading: these change nothing and never fail on a state.

-- tg_state: {generation, sequence, state, version, deployment, 1 if the fence is closed, unix ms}
register("tg_state", {"no-writes"}, function(keys)
  local meta = redis.call("HMGET", keys[META], "gen", "seq", "state", "ver", "install")
  local twin = TWINS[keys[META]]
  local matches = twin and meta[1] and twin.gen == meta[1] and twin.seq == meta[2]
  return {meta[1] or "0", meta[2] or "0", meta[3] or "", meta[4] or "0", meta[5] or "",
    matches and 1 or 0, now_ms()}
end)

-- tg_open: every open hold as {call id, deadline, wallet, amount, msgpack of its windows
-- {{cap id, start, limit}}, ticket}; ARGV[1] the generation
register("tg_open", {"no-writes"}, function(keys, args)
  local refused = refusal(keys, args, "AR")
  if refused then return refused end
  local call, rows = new_call(keys, args, ""), {}
  local due = redis.call("ZRANGE", keys[DUE], 0, -1, "WITHSCORES")
  for i = 1, #due, 2 do
    local row, windows = due_row(call, due[i]), {}
    if row then
      for j, cap in ipairs(row.head[H_CAPS]) do
        windows[j] = {cap[1], window_start(cap, row.held_ms), cap[2]}
      end
      rows[#rows + 1] = {due[i], due[i + 1], row.head[H_WALLET], integer_text(row.amount),
        cmsgpack.pack(windows), row.ticket}
    end
  end
  return rows
end)

-- tg_withheld: {withdrawal id, generation, wallet, amount}...; ARGV[1] the generation
register("tg_withheld", {"no-writes"}, function(keys, args)
  local refused = refusal(keys, args, "AR")
  if refused then return refused end
  if not keys[WITHHELD] then return redis.error_reply("ARGS 12 keys") end
  local rows, stored = {}, redis.call("HGETALL", keys[WITHHELD])
  for i = 1, #stored, 2 do
    local gen, wallet, amount = withheld_parts(stored[i + 1])
    rows[#rows + 1] = {stored[i], gen, wallet, amount}
  end
  return rows
end)

local function last_stream_id(key)
  if redis.call("EXISTS", key) == 0 then return "0-0" end
  local info = redis.call("XINFO", "STREAM", key)
  for i = 1, #info, 2 do
    if info[i] == "last-generated-id" then return info[i + 1] end
  end
end

-- tg_snap: wallets at one stream id, as {last stream id, next cursor, {wallet, free, held, base,
-- spent, version}...}. ARGV[1] the generation, ARGV[2] a cursor ("0" to begin; the answer's "0" is
-- the end) with ARGV[3] about how many, or "-" and the wallets after it; a missing one is left out.
register("tg_snap", {"no-writes"}, function(keys, args)
  local refused = refusal(keys, args, "AR")
  if refused then return refused end
  local cursor, wallets = "0", {}
  if args[2] == "-" then
    for i = 3, #args do wallets[i - 2] = args[i] end
  else
    local page = redis.call("HSCAN", keys[BASE], args[2], "COUNT", args[3])
    cursor = page[1]
    for i = 1, #page[2], 2 do wallets[#wallets + 1] = page[2][i] end
  end
  local answer = {last_stream_id(keys[LOG]), cursor}
  for _, wallet in ipairs(wallets) do
    local base = redis.call("HGET", keys[BASE], wallet)
    if base then
      local row = {wallet}
      for i, key in ipairs({FREE, HELD, BASE, SPENT, VER}) do
        row[i + 1] = redis.call("HGET", keys[key], wallet) or "0"
      end
      answer[#answer + 1] = row
    end
  end
  return answer
end)

--------------------------------------------------------------------------------------------------
-- The API key cache: KEYS[1] tg:key:<digest>, a string "<version>|<payload>"; an empty payload is
-- the tombstone of a key that is revoked. It holds no money and so passes no fence.
--
-- tg_key_put: ARGV version, payload, ttl_ms. tg_key_drop: ARGV version, ttl_ms. Answer 1, or 0 when
-- what is stored is newer (a tombstone also wins over a payload of its own version).

local function cached(key)
  local stored = redis.call("GET", key)
  if not stored then return -1, false end
  local bar = string.find(stored, "|", 1, true)
  return tonumber(string.sub(stored, 1, bar - 1)), bar == #stored
end

register("tg_key_put", {}, function(keys, args)
  local version, ttl = tonumber(args[1]), tonumber(args[3])
  if #keys ~= 1 or not is_amount(version) or not is_name(args[2]) or not is_amount(ttl) then
    return redis.error_reply("ARGS key; version, payload, ttl_ms")
  end
  local stored, is_tombstone = cached(keys[1])
  if stored > version or (stored == version and is_tombstone) then return 0 end
  redis.call("SET", keys[1], integer_text(version) .. "|" .. args[2], "PX", ttl)
  return 1
end)

register("tg_key_drop", {"allow-oom"}, function(keys, args)
  local version, ttl = tonumber(args[1]), tonumber(args[2])
  if #keys ~= 1 or not is_amount(version) or not is_amount(ttl) then
    return redis.error_reply("ARGS key; version, ttl_ms")
  end
  if cached(keys[1]) > version then return 0 end
  redis.call("SET", keys[1], integer_text(version) .. "|", "PX", ttl)
  return 1
end)
