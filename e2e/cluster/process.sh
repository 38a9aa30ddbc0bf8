# Sourced: background processes on record, so that only our own are ever ended.
# shellcheck shell=bash

# The kernel's start time of a process: with it, a pid that was given away again isn't taken for ours.
start_time() { sed 's/.*) //' "/proc/$1/stat" 2> /dev/null | cut -d' ' -f20; }

# start_process NAME COMMAND...: its output is added to log/NAME.log.
start_process() {
  local name=$1; shift
  setsid "$@" < /dev/null >> "$state/log/$name.log" 2>&1 &
  echo "$! $(start_time $!)" > "$state/process/$name"
}

# pid_of NAME: prints the pid while that process runs.
pid_of() {
  local pid time
  read -r pid time 2> /dev/null < "$state/process/$1" || return 1
  [ -n "$time" ] && [ "$(start_time "$pid")" = "$time" ] && echo "$pid"
}

has_ended() { ! pid_of "$1"; }

# stop_process NAME [SIGNAL]: until it is gone.
stop_process() {
  local pid
  pid=$(pid_of "$1") || return 0
  kill -s "${2:-TERM}" "$pid" 2> /dev/null || true
  await 10 has_ended "$1" || { kill -KILL "$pid" 2> /dev/null || true; await 10 has_ended "$1" || fail "$1 (pid $pid) does not end"; }
  rm -f "$state/process/$1"
}
