-- Ends wrk's report with one line of JSON. Times are in µs.
function done(summary, latency)
    local errors = summary.errors
    local line = '{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "p99_9": %d, '
        .. '"errors": {"connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}}\n'
    io.write(line:format(
        summary.requests, summary.duration,
        latency:percentile(50), latency:percentile(99), latency:percentile(99.9),
        errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
