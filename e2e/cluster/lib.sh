# Sourced by every script of the harness: names, addresses, folders, versions, messages, waiting.
# shellcheck shell=bash disable=SC2034 # its variables are used where it is sourced
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)

cache=${WG_OVERLAY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/wg-overlay}
# The prefix of every namespace and control group; with another one, a second cluster runs beside the first.
cluster=${WG_OVERLAY_CLUSTER:-wgo}
state=$cache/cluster; [ "$cluster" = wgo ] || state=$cache/cluster-$cluster

# What `up` was told holds until `down`, where the environment says nothing else.
# shellcheck source=/dev/null
[ ! -f "$state/settings" ] || . "$state/settings"
KUBE_VERSION=${KUBE_VERSION:-1.36}
CONTAINERD_VERSION=${CONTAINERD_VERSION:-2}
PROXY_MODE=${PROXY_MODE:-nftables}

gateway4=172.30.0.254
gateway6=fd00:30::fe
control_plane4=172.30.0.1
control_plane6=fd00:30::1
pod_networks=10.244.0.0/16,fd00:244::/56
service_networks=10.96.0.0/16,fd00:96::/112
dns_service=10.96.0.10

fail() { echo "cluster: $*" >&2; exit 1; }
say() { echo "cluster: $*"; }

# fail_with_log MESSAGE LOG: the last lines of the log say why.
fail_with_log() {
  echo "--- the end of $2" >&2
  tail -n 20 "$2" 2> /dev/null | tr -d '\0' >&2
  fail "$1"
}

# await SECONDS COMMAND...: until the command succeeds; fails when the time is over.
await() {
  local end=$((SECONDS + $1)); shift
  until "$@" > /dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.2
  done
}

# The pinned modules of the versions asked for; a version's patch level is what its go.mod pins.
kubernetes_module() { echo "kubernetes-$(cut -d. -f1,2 <<< "${KUBE_VERSION#v}")"; }
containerd_module() { case ${CONTAINERD_VERSION#v} in 1.7*) echo containerd-1.7 ;; *) echo containerd-2 ;; esac; }
# pinned_version MODULE DEPENDENCY
pinned_version() { sed -n "s|^\t*\(require \)\{0,1\}$2 v\([0-9.]*\).*|\2|p" "$here/modules/$1/go.mod"; }
modules() { echo "$(kubernetes_module) $(containerd_module) etcd coredns cni-plugins"; }

images=$cache/kube/$(kubernetes_module)/images
sandbox_image=registry.k8s.io/pause:3.10.1

# The folders of the cluster's programs, as PATH has them.
program_path() {
  if [ -n "${KUBE_BIN_DIR:-}" ]; then echo "$KUBE_BIN_DIR"; return; fi
  local module path=""
  for module in $(modules); do path=$path:$cache/kube/$module; done
  echo "${path#:}"
}
export PATH
case $PATH in "$(program_path)":*) ;; *) PATH=$(program_path):/usr/sbin:/usr/bin:/sbin:/bin:$PATH ;; esac
