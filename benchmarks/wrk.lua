-- The load: one body, sent with each set of headers in turn; the result as one line of JSON.
--
-- wrk ... -s wrk.lua URL -- BODY HEADERS [HEADERS...]   HEADERS: lines "Name: value"
local requests, turn = {}, 0

function init(args)
  local body = args[1]
  for index = 2, #args do
    local headers = { ["Content-Type"] = "application/json" }
    for name, value in args[index]:gmatch("([^\n:]+): ([^\n]*)") do
      headers[name] = value
    end
    requests[#requests + 1] = wrk.format("POST", nil, headers, body)
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format(
    '{"requests":%d,"seconds":%.6f,"refused":%d,"failed":%d,"p50_us":%d,"p99_us":%d}\n',
    summary.requests, summary.duration / 1e6, errors.status, failed,
    latency:percentile(50), latency:percentile(99)
  ))
end
