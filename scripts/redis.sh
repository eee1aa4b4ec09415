# Sourced by the benchmarks that also measure with Redis.

# A throw-away Redis or Valkey on this port of 127.0.0.1, which ends with the script; $redis_url is its address. Where the
# machine has none, says so and ends the script.
start_redis() {
    local program
    program=$(command -v redis-server || command -v valkey-server || true)
    if [ -z "$program" ]; then
        echo "NOT MEASURED with Redis: this machine has none (apt-get install redis-server)" >&2
        exit
    fi
    redis_directory=$(mktemp -d)
    (cd "$redis_directory" && exec "$program" --bind 127.0.0.1 --port "$1" --save '' --appendonly no >/dev/null) &
    redis_process=$!
    trap 'kill "$redis_process"; rm -rf "$redis_directory"' EXIT
    redis_url=redis://127.0.0.1:$1
}
