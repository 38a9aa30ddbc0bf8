# Sourced: nodes, each a set of network, mount, process, host-name and IPC namespaces; what runs inside is in `node`.
# shellcheck shell=bash

node_names() { local folder; for folder in "$state"/nodes/*/; do [ -d "$folder" ] && basename "$folder"; done; true; }
node_is_up() { pid_of "node-$1" > /dev/null; }

# The last part of a node's addresses: 1 for cp, 11 for n1; each new address of the same node is 10 further.
host_part() { cat "$state/nodes/$1/host"; }

# in_node NODE COMMAND...: in all of its namespaces.
in_node() {
  local node=$1 parent pid; shift
  parent=$(pid_of "node-$node") || fail "node $node does not run"
  pid=$(ps -o pid= --ppid "$parent" | tr -d ' ')
  [ -n "$pid" ] || fail "node $node is ending"
  nsenter --target "$pid" --mount --pid --uts --ipc --net -- env NODE="$node" "$@"
}

# Folders of the node that outlive a crash, and its credentials.
create_node() {
  local folder=$state/nodes/$1
  mkdir -p "$folder"/{images,var/lib/kubelet,var/log,opt/cni/bin,etc}
  if [ "$1" = cp ]; then echo 1; else echo $((10 + ${1#n})); fi > "$folder/host"
  create_user "node-$1" "/O=system:nodes/CN=system:node:$1"
}

boot_node() {
  local node=$1 host
  host=$(host_part "$node")
  namespace_exists "$cluster-$node" || plug_in "$node" "172.30.0.$host" "fd00:30::$host"
  rm -f "$state/nodes/$node/booted"
  start_process "node-$node" nsenter --net="/run/netns/$cluster-$node" \
    unshare --mount --pid --uts --ipc --fork --kill-child --propagation private env NODE="$node" "$here/node" boot
  await 10 test -e "$state/nodes/$node/booted" || fail_with_log "node $node does not start" "$state/log/node-$node.log"
}

start_node_services() {
  local node=$1
  in_node "$node" "$here/node" start containerd
  await 30 in_node "$node" ctr version || fail_with_log "containerd of $node does not answer" "$state/log/$node-containerd.log"
  load_images "$node" "$images"/*.tar
  in_node "$node" "$here/node" start kubelet
  [ "$PROXY_MODE" = none ] || in_node "$node" "$here/node" start kube-proxy
}

start_node() { boot_node "$1"; start_node_services "$1"; }

# load_images NODE FILE...: into its containerd, if it has not had this file already.
load_images() {
  local node=$1 file mark; shift
  for file; do
    mark=$state/nodes/$node/images/$(basename "$file")
    [ -e "$file" ] || fail "no image $file: run e2e/cluster/images"
    [ "$mark" -nt "$file" ] && continue
    in_node "$node" ctr --namespace k8s.io images import --digests "$file" >> "$state/log/$node-images.log" 2>&1 ||
      fail_with_log "containerd of $node does not take $file" "$state/log/$node-images.log"
    touch "$mark"
  done
}

# A crash: everything in the node ends at once, and its port on the switch is gone.
crash_node() {
  [ "$1" != cp ] || fail "the control plane is no node to crash: api stop"
  node_is_up "$1" || fail "node $1 does not run"
  stop_process "node-$1" KILL
  unplug "$1"
}

# revive_node NODE [--new-ip]
revive_node() {
  [ -d "$state/nodes/$1" ] || fail "no node $1; there are: $(node_names | xargs)"
  ! node_is_up "$1" || fail "node $1 runs already"
  [ "${2:-}" != --new-ip ] || echo "$(($(host_part "$1") + 10))" > "$state/nodes/$1/host"
  start_node "$1"
}

node_is_registered() { kubectl_ get node "$1"; }
nodes_are_ready() {
  local ready
  ready=$(kubectl_ get nodes -o jsonpath='{range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}')
  [ -n "$ready" ] && ! grep -qv True <<< "$ready"
}

# Control groups of nodes, below each hierarchy (v1) or the only one (v2). A dying process holds its group for a moment.
remove_control_groups() {
  local group
  for group in /sys/fs/cgroup/{,*/}"$cluster"-{cp,n[0-9]}; do
    await 10 remove_control_group "$group" || fail "control group $group is still in use"
  done
}
remove_control_group() {
  [ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} + || true
  [ ! -d "$1" ]
}
