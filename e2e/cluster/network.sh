# Sourced: the underlay, one bridge in a namespace of its own with a port for each machine. The bridge is their default
# gateway, so that service addresses have a route; it forwards nothing.
# shellcheck shell=bash

namespace_exists() { [ -e "/run/netns/$1" ]; }

create_switch() {
  ip netns add "$cluster-sw"
  ip -n "$cluster-sw" link add br0 type bridge
  ip -n "$cluster-sw" address add "$gateway4/24" dev br0
  ip -n "$cluster-sw" address add "$gateway6/64" dev br0 nodad
  ip -n "$cluster-sw" link set br0 up
  nsenter --net="/run/netns/$cluster-sw" sysctl -qw net.ipv4.ip_forward=0
}

# plug_in MACHINE IPV4 IPV6: a namespace whose eth0 hangs on the switch's port of the same name.
plug_in() {
  local namespace=$cluster-$1
  ip netns add "$namespace"
  # A machine as installed: whoever needs forwarding turns it on. IPv4 would be inherited from this host.
  nsenter --net="/run/netns/$namespace" sysctl -qw net.ipv4.ip_forward=0
  ip link add "$namespace" netns "$cluster-sw" type veth peer name eth0 netns "$namespace"
  ip -n "$cluster-sw" link set "$namespace" master br0 up
  ip -n "$namespace" link set lo up
  ip -n "$namespace" address add "$2/24" dev eth0
  ip -n "$namespace" address add "$3/64" dev eth0 nodad
  ip -n "$namespace" link set eth0 up
  ip -n "$namespace" route add default via "$gateway4"
  ip -n "$namespace" -6 route add default via "$gateway6"
}

unplug() {
  ip -n "$cluster-sw" link delete "$cluster-$1" 2> /dev/null || true
  remove_namespace "$cluster-$1"
}

# What still runs there, kubectl for example, ends with it.
remove_namespace() {
  namespace_exists "$1" || return 0
  local pids
  pids=$(ip netns pids "$1")
  # shellcheck disable=SC2086 # a list of numbers
  [ -z "$pids" ] || kill -KILL $pids 2> /dev/null || true
  ip netns delete "$1"
}

our_namespaces() { ip netns list 2> /dev/null | awk -v prefix="^$cluster-(sw|cp|n[0-9])$" '$1 ~ prefix { print $1 }'; }
