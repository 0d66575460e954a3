-- One request over and over, from a file: path, body, headers as `name: value` lines.
-- With vary the last 4 bytes of the body count up, so that no two requests are alike.
local count = 0

function init(args)
   local file = assert(io.open(args[1], "rb"))
   body = file:read("*a")
   file:close()
   vary = args[2] == "vary"
   wrk.method = "POST"
end

function request()
   if not vary then
      return wrk.format(nil, nil, nil, body)
   end
   count = count + 1
   local n = count % 16777216
   local tail = string.char(n % 256, math.floor(n / 256) % 256, math.floor(n / 65536), 63)
   return wrk.format(nil, nil, nil, body:sub(1, -5) .. tail)
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      '{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "slowest": %f, "failed": %d}\n',
      summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
      latency:percentile(99) / 1e3, latency.max / 1e3,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
